"""What a Serve configuration file names as its `import_path`; docker/serve.yaml is one.

There Serve's own HTTP proxies take the requests, on every machine of the cluster, and send them to
the door's deployment; Redis is one that all machines reach.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import ray
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from ray.serve.deployment import Application
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ServeDeploySchema

from server.api.ingress import Ingress
from server.scale.asking import ServeReplicas
from server.scale.deployment import QUIET, Scale, deployment
from server.settings import Settings, SettingsError, load_settings, model_folder

IMPORT_PATH: Final = "server.scale.file:build"
DOOR_REQUESTS: Final = 4096
"""Requests that one door passes on at a time: each is a few tasks that wait."""
SET_BY_SERVE: Final = frozenset(
    {"host", "port", "data_dir", "replicas", "max_replicas", "replica_cpus"}
)


class Arguments(BaseModel):
    """The `args` of the application in the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    settings: dict[str, Any] = Field(
        default_factory=dict,
        description="settings of `innerloop serve` by name; the rest comes from the environment of "
        "the cluster's head, keys above all",
    )
    scale: Scale = Scale()
    doors: int = Field(1, ge=1, le=64, description="processes that pass requests on")
    door_cpus: float = Field(0.1, ge=0)


@serve.ingress()
class Door:
    """The ingress as a deployment of its own."""

    def __init__(self, replicas: DeploymentHandle[Any], settings: Settings, wanted: int) -> None:
        self._ingress = Ingress(
            ServeReplicas(replicas, wanted), settings.max_body_bytes, settings.max_import_bytes
        )

    def __serve_build_asgi_app__(self) -> Ingress:
        return self._ingress


def build(args: dict[str, Any]) -> Application:
    """The application of the file's `args`, see `Arguments`.

    Raises:
        SettingsError: an unknown key, a setting that does not fit, or no room in the cluster.
    """
    try:
        arguments = Arguments.model_validate(args)
    except ValidationError as error:
        raise SettingsError(f"args of {IMPORT_PATH}: {_told(error)}") from error
    if fixed := sorted(SET_BY_SERVE & set(arguments.settings)):
        raise SettingsError(
            f"args.settings: {', '.join(fixed)} cannot be set here: http_options has host and "
            "port, args.scale how many replicas there are"
        )
    settings = load_settings(arguments.settings)
    model_folder(settings.model)
    if settings.redis_url is None:
        raise SettingsError(
            "replicas of a cluster need a Redis that all of its machines reach: set "
            "INNERLOOP_REDIS_URL on the head, or args.settings.redis_url"
        )
    if not settings.has_keys:
        raise SettingsError(
            "Serve's proxies can be reached from other machines and no keys are set: set "
            "INNERLOOP_API_KEYS or INNERLOOP_OPERATOR_KEYS on the head"
        )
    scale = arguments.scale.fitted(settings.device, ray.cluster_resources())
    return (
        serve.deployment(
            Door,
            name="Door",
            num_replicas=arguments.doors,
            max_ongoing_requests=DOOR_REQUESTS,
            ray_actor_options={"num_cpus": arguments.door_cpus},
            graceful_shutdown_wait_loop_s=0.2,
            graceful_shutdown_timeout_s=settings.drain_s,
            logging_config=QUIET,
        )
    ).bind(deployment(settings, scale), settings, scale.replicas)


def check_file(path: Path) -> Mapping[str, Any]:
    """A Serve configuration file of ours, of which Serve understands every key.

    Serve itself passes over keys that it does not know.

    Raises:
        SettingsError: it cannot be read, or a key or a value in it is wrong.
    """
    try:
        given = yaml.safe_load(path.read_text())
        known = ServeDeploySchema.model_validate(given)
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: {error}") from error
    except ValidationError as error:
        raise SettingsError(f"{path}: {_told(error)}") from error
    if unknown := _unknown(given, known.model_dump(by_alias=True), ""):
        raise SettingsError(f"{path}: Serve knows no {', '.join(unknown)}")
    for application in given["applications"]:
        if application.get("import_path") == IMPORT_PATH:
            try:
                Arguments.model_validate(application.get("args", {}))
            except ValidationError as error:
                raise SettingsError(f"{path}: args: {_told(error)}") from error
    return dict(given)


def _unknown(given: Any, known: Any, where: str) -> list[str]:
    """The places of what was given and is not among what is known."""
    if isinstance(given, list) and isinstance(known, list):
        pairs = zip(given, known, strict=False)
        return [each for n, (a, b) in enumerate(pairs) for each in _unknown(a, b, f"{where}[{n}]")]
    if not isinstance(given, dict) or not isinstance(known, dict):
        return []
    found = []
    for key, value in given.items():
        place = f"{where}.{key}" if where else str(key)
        found += _unknown(value, known[key], place) if key in known else [place]
    return found


def _told(error: ValidationError) -> str:
    items = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in items)
