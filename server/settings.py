"""Every setting of the server: what it counts, its unit, its default.

A value comes from the command line, else from the environment (`INNERLOOP_` before the name in
capitals), else from here. Whatever is wrong stops the start and names key, value and expected type.
It knows no other room: each of them takes the values it needs.
"""

import ipaddress
import os
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from server.rates import Rate, parse_rate

PREFIX = "INNERLOOP_"
OTHER_VARIABLES = frozenset({"INNERLOOP_URL", "INNERLOOP_KEY"})
"""Variables with our prefix that are no settings: how the commands reach a server."""
TENANT_PATTERN = r"^[A-Za-z0-9._-]{1,64}$"
ORIGIN_PATTERN = r"^https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?$"
REDIS_SCHEMES = frozenset(
    {"redis", "rediss", "unix"}
    | {f"{tls}+{kind}" for tls in ("redis", "rediss") for kind in ("sentinel", "cluster")}
)
SECRETS = frozenset({"api_keys", "operator_keys", "redis_url"})
"""Settings whose value no message repeats."""
MODELS = Path(__file__).parent / "models"
"""Models that come with the package."""

OptionalRate = Annotated[
    Rate | None,
    NoDecode,
    BeforeValidator(lambda value: parse_rate(value) if isinstance(value, str) else value),
]


SAFE_KEY_CHARS = 16
"""Drawn at random, so many are beyond guessing."""


class SettingsError(ValueError):
    """The server cannot start like this; the message names the setting and what it takes."""


class ApiKey(BaseModel):
    """A client's key and the tenant whose sessions it opens."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    tenant: str = Field(pattern=TENANT_PATTERN)
    key: SecretStr = Field(min_length=1)


def default_data_dir() -> Path:
    """Where a person's programs keep their data: `$XDG_DATA_HOME`, else `~/.local/share`."""
    home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(home).expanduser() / "innerloop"


class Settings(BaseSettings):
    """All settings, frozen. Make them with `load_settings`, whose errors are for people."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
    )

    model: str = Field(
        "innerloop-tiny",
        min_length=1,
        description="model folder, or the name of a model that comes with the package",
    )
    encoder: str = Field(
        "auto",
        min_length=1,
        description="sentence encoder that tells which prompts are like what was taught, and that "
        "`innerloop calibrate` made the model ready for: auto for one that is installed "
        "(innerloop[encoder]), none, a folder, or a repository of the hub",
    )
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="address to serve on; anything but the machine's own loopback needs keys",
    )
    port: int = Field(8000, ge=0, le=65535, description="TCP port to serve on; 0 picks a free one")
    data_dir: Path = Field(
        default_factory=default_data_dir,
        description="folder of the embedded Redis; one server at a time may own it",
    )
    redis_url: str | None = Field(
        None,
        description="Redis or Valkey (redis://, rediss://, unix://, redis+sentinel://, "
        "redis+cluster://) in place of the embedded one",
    )
    redis_replicas: int = Field(
        0,
        ge=0,
        le=16,
        description="replicas of Redis that must have what was taught before it is acknowledged",
    )
    redis_fsync: bool = Field(
        False,
        description="what was taught is acknowledged when Redis has synced it to disk (WAITAOF)",
    )
    api_keys: Annotated[tuple[ApiKey, ...], NoDecode] = Field(
        (),
        description="client keys as tenant:key, separated by commas; a tenant may have several",
    )
    operator_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="keys, separated by commas, that open every tenant and the /admin routes",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="pages of other hosts that may call with a token, as https://shop.example, "
        "separated by commas; * for all, only where there are keys",
    )
    tenant_requests: OptionalRate = Field(
        None, description="requests of each tenant, as 50/s or, with the most at once, 50/s:200"
    )
    session_requests: OptionalRate = Field(
        None, description="requests of each session, as 2/s:10; units are s, m, h and d"
    )
    tenant_feedback: OptionalRate = Field(
        None, description="feedback items that each tenant may send, as 1000/h"
    )
    session_feedback: OptionalRate = Field(
        None, description="feedback items that each session may be sent, as 200/d:64"
    )
    tenant_tokens: OptionalRate = Field(
        None, description="tokens that each tenant may have answered with, as 1000000/d:50000"
    )
    session_tokens: OptionalRate = Field(
        None, description="tokens that each session may be answered with, as 20000/h"
    )
    tenant_learning: OptionalRate = Field(
        None, description="tokens times inner steps that each tenant may have learned"
    )
    session_learning: OptionalRate = Field(
        None, description="tokens times inner steps that each session may learn, as 200000/d"
    )
    replicas: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="engine replicas behind one door, on Ray Serve; needs innerloop[ray]",
    )
    max_replicas: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="start more replicas while many requests wait, up to so many",
    )
    replica_cpus: float | None = Field(
        None, gt=0, le=1024, description="CPUs that Ray counts for each replica; may be below 1"
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$",
        description="where the model runs: cpu, cuda, cuda:N, or auto for a GPU where there is one",
    )
    threads: int = Field(
        0, ge=0, le=1024, description="CPU threads of the model; 0 leaves it to PyTorch"
    )
    kernels: bool = Field(
        True,
        description="decode on a CPU with operations of the server's own, which the machine's C++ "
        "compiler makes once; without a compiler PyTorch's do the same, slower",
    )
    rows: int = Field(32, ge=1, le=4096, description="sequences decoded together in one step")
    adapter_bytes: int = Field(
        256 * 1024**2, ge=1, description="memory on the device for session adapters, bytes"
    )
    host_adapter_bytes: int = Field(
        1024**3, ge=0, description="memory of the host for adapters out of the device, bytes"
    )
    kv_bytes: int = Field(
        4 * 1024**3, ge=1, description="memory for the sequences being decoded, bytes"
    )
    queue: int = Field(256, ge=1, le=65536, description="requests that may wait for the engine")
    patience_s: float = Field(
        60, gt=0, le=3600, description="longest wait for a place or a lesson, seconds; then 503"
    )
    recall: bool = Field(
        True, description="follow what was taught for prompts like the one asked, word by word"
    )
    gate_margin: float = Field(
        0,
        ge=-1,
        le=1,
        description="how much liker to what was taught than the model's gate asks for a question "
        "has to be to get a taught answer (cosine): more leaves more other answers as they were, "
        "and knows fewer other words for what was taught; no effect on models without a gate",
    )
    in_context: int = Field(
        0,
        ge=0,
        le=32,
        description="most feedback items of a session to put into a prompt, as earlier turns",
    )
    adapt_batch: int = Field(
        8, ge=1, le=1024, description="sessions that learn together in one inner step"
    )
    halvings: int = Field(
        2,
        ge=0,
        le=8,
        description="how often a refused update is halved and judged again; 0 never",
    )
    prefill_tokens: int = Field(
        512, ge=16, le=65536, description="prompt tokens computed between two decode steps"
    )
    prefix_cache_bytes: int = Field(
        256 * 1024**2, ge=0, description="memory for prompts computed before, bytes"
    )
    max_body_bytes: int = Field(
        1024**2, ge=1024, le=1024**3, description="longest request body, bytes"
    )
    max_import_bytes: int = Field(
        64 * 1024**2, ge=1024, le=4 * 1024**3, description="longest PEFT zip to import, bytes"
    )
    history_versions: int = Field(
        16, ge=1, le=4096, description="versions of each session that can be gone back to"
    )
    history_snapshots: int = Field(
        4, ge=1, le=4096, description="of them, those whose adapter is stored; others are derived"
    )
    snapshot_precision: Literal["int8", "bfloat16", "float32"] = Field(
        "int8", description="of stored adapters: how far each is from where all of them begin"
    )
    session_lifetime_s: int = Field(
        0, ge=0, description="sessions unused for so long are deleted, seconds; 0 keeps them"
    )
    completion_lifetime_s: int = Field(
        24 * 3600, ge=1, description="how long a completion can get feedback, seconds"
    )
    drain_s: int = Field(
        30, ge=0, le=3600, description="time for requests under way when the server stops, seconds"
    )
    shutdown_delay_s: int = Field(
        0,
        ge=0,
        le=3600,
        description="time, before that, in which /readyz says 503 and requests are still taken, "
        "for a load balancer to notice, seconds",
    )
    allow_mixed: bool = Field(
        False,
        description="start beside live replicas that serve another model from the same Redis; "
        "sessions then change between both",
    )
    takeover_s: int = Field(
        30,
        ge=1,
        le=3600,
        description="how long feedback lies unfinished before another replica finishes it, seconds",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe log line written to standard error"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="of the log: lines for people, or one JSON object a line"
    )

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_api_keys(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        entries = [entry.partition(":") for entry in _split(value)]
        if not all(tenant and key for tenant, _, key in entries):
            raise ValueError("every entry must be tenant:key, entries separated by commas")
        return tuple(ApiKey(tenant=tenant, key=SecretStr(key)) for tenant, _, key in entries)

    @field_validator("operator_keys", mode="before")
    @classmethod
    def _split_operator_keys(cls, value: Any) -> Any:
        return tuple(_split(value)) if isinstance(value, str) else value

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: Any) -> Any:
        origins = tuple(_split(value)) if isinstance(value, str) else value
        for origin in origins:
            if origin != "*" and not re.fullmatch(ORIGIN_PATTERN, origin):
                raise ValueError(
                    f"{origin!r} is no origin: scheme, host and port as a browser sends them, "
                    "such as https://shop.example"
                )
        return origins

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).scheme not in REDIS_SCHEMES:
            raise ValueError(
                "a Redis URL begins with redis://, rediss://, unix://, redis+sentinel:// or "
                "redis+cluster://"
            )
        return value

    @model_validator(mode="after")
    def _check_replicas(self) -> "Settings":
        if self.replicas is None and (self.max_replicas or self.replica_cpus):
            raise ValueError(
                "max_replicas and replica_cpus are for several replicas: set replicas too "
                "(--replicas or INNERLOOP_REPLICAS)"
            )
        if self.max_replicas is not None and self.max_replicas < (self.replicas or 1):
            raise ValueError(
                f"max_replicas is {self.max_replicas} and replicas {self.replicas}: the most "
                "cannot be fewer than the fewest"
            )
        return self

    @model_validator(mode="after")
    def _check_keys(self) -> "Settings":
        keys = [key.key.get_secret_value() for key in self.api_keys]
        keys += [key.get_secret_value() for key in self.operator_keys]
        if len(set(keys)) < len(keys):
            raise ValueError("api_keys and operator_keys name one key twice: every key must differ")
        if not keys and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host!r} can be reached from other machines and no keys are set: "
                "set INNERLOOP_API_KEYS (tenant:key,...) or INNERLOOP_OPERATOR_KEYS, "
                "or serve on 127.0.0.1"
            )
        if self.redis_replicas and self.redis_url is None:
            raise ValueError(
                "redis_replicas is for a Redis with replicas, and the embedded one has none: set "
                "INNERLOOP_REDIS_URL too"
            )
        if self.redis_fsync and self.redis_url is None:
            raise ValueError(
                "redis_fsync is for a Redis that syncs once a second, and the embedded one syncs "
                "every write: unset it, or set INNERLOOP_REDIS_URL too"
            )
        if "*" in self.cors_origins and not keys:
            raise ValueError(
                "cors_origins is * and no keys are set: any page could use this server. Set "
                "INNERLOOP_API_KEYS or INNERLOOP_OPERATOR_KEYS, or name the pages' origins"
            )
        return self

    @property
    def has_keys(self) -> bool:
        """Whether the environment has keys; others may be stored, see `server.api.keyring`."""
        return bool(self.api_keys or self.operator_keys)

    @property
    def guessable_keys(self) -> int:
        """How many of the environment's keys are short, where other machines may try them."""
        keys = [key.key for key in self.api_keys] + list(self.operator_keys)
        short = [key for key in keys if len(key.get_secret_value()) < SAFE_KEY_CHARS]
        return 0 if is_loopback(self.host) else len(short)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def model_folder(model: str, setting: str = PREFIX + "MODEL") -> Path:
    """The folder of a model given by path or by the name of one that comes with the package;
    ``setting`` is how it was given.

    Raises:
        SettingsError: there is neither.
    """
    for folder in (Path(model).expanduser(), MODELS / model):
        if folder.is_dir():
            return folder
    known = (
        sorted(path.name for path in MODELS.iterdir() if path.is_dir()) if MODELS.is_dir() else []
    )
    raise SettingsError(
        f"{setting}={model!r}: there is no such folder, and the models that come with the "
        f"package are: {', '.join(known) or 'none'} (expected a model folder's path, or a name)"
    )


def package_version() -> str:
    """The version that is installed."""
    try:
        return version("innerloop")
    except PackageNotFoundError:  # run from a tree that was never installed
        return "0+unknown"


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def flag(name: str) -> str:
    """The argument of `innerloop serve` for a setting."""
    return "--" + name.replace("_", "-")


def load_settings(overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read all settings; ``overrides`` (the command's flags) go before the environment.

    Raises:
        SettingsError: an unknown variable with our prefix, or a value that does not fit.
    """
    known = {variable(name) for name in Settings.model_fields} | OTHER_VARIABLES
    unknown = sorted(
        key for key in os.environ if key.upper().startswith(PREFIX) and key.upper() not in known
    )
    if unknown:
        raise SettingsError(
            f"unknown setting {', '.join(unknown)} in the environment: "
            "`innerloop serve --help` lists the settings"
        )
    try:
        return Settings(**(overrides or {}))
    except ValidationError as error:
        raise SettingsError("; ".join(_describe(error, overrides or {}))) from error


def _describe(error: ValidationError, overrides: Mapping[str, Any]) -> list[str]:
    """One line per wrong setting: key, value (unless it is a secret) and what it takes."""
    lines = []
    for item in error.errors(include_url=False, include_context=False):
        message = item["msg"].removeprefix("Value error, ")
        if not item["loc"]:
            lines.append(message)
            continue
        name = str(item["loc"][0])
        value = overrides.get(name, os.environ.get(variable(name)))
        shown = "" if name in SECRETS or value is None else f"={str(value)!r}"
        key = flag(name) if name in overrides else variable(name)
        lines.append(f"{key}{shown}: {message} (expected {_kind(name)})")
    return lines


def _kind(name: str) -> str:
    field = Settings.model_fields.get(name)
    if field is None:
        return "no such setting"
    annotation = field.annotation
    return (
        {int: "int", float: "number", str: "str", Path: "path"}.get(annotation, "text")
        if isinstance(annotation, type)
        else "text"
    )


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
