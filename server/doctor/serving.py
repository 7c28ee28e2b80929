"""The model, the port, and a server that may run already."""

from collections.abc import Iterator
from typing import Any

import httpx

from adapters.artifact import ArtifactError, load_served
from adapters.calibrated import CalibrationError
from adapters.encoder_folder import EncoderError
from server.doctor import Finding, Level
from server.doctor.machine import free_bytes, memory
from server.listener import StartError, listen
from server.settings import Settings, SettingsError, model_folder

TIMEOUT_S = 5.0


def model(settings: Settings, load: bool) -> Iterator[Finding]:
    """Whether the model is there, whole, and fits into the memory."""
    try:
        folder = model_folder(settings.model)
    except SettingsError as error:
        yield Finding("model", "problem", str(error), "name another with INNERLOOP_MODEL")
        return
    budgets = settings.kv_bytes + settings.host_adapter_bytes
    budgets += settings.adapter_bytes + settings.prefix_cache_bytes
    # On a CPU weights of 16 bits are computed with in 32.
    needed = 2 * sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    yield from memory(needed, budgets)
    free = free_bytes()
    if not load or (free is not None and needed > free):
        yield Finding("model", "warning", f"{folder} was not loaded, so nothing is known about it")
        return
    try:
        artifact = load_served(folder, "cpu", settings.encoder)
    except ArtifactError as error:
        mend = "make or copy the folder again, or name another with INNERLOOP_MODEL"
        if isinstance(error.__cause__, EncoderError | CalibrationError):
            mend = "name another with INNERLOOP_ENCODER, or serve without one: none"
        yield Finding("model", "problem", str(error), mend)
        return
    beside = f"the encoder {artifact.encoder}" if artifact.encoder else "no sentence encoder"
    rule = "its own inner rule" if artifact.report is not None else "the default inner rule"
    yield Finding(
        "model",
        "ok",
        f"{artifact.name} loads, with {rule} and {beside}, rank {artifact.spec.rank}, "
        f"{artifact.context_tokens} tokens of context; its weights have the fingerprint "
        f"{artifact.fingerprint[:16]}",
    )


def port(settings: Settings, server: dict[str, Any] | None) -> Iterator[Finding]:
    """Whether the port can be had."""
    where = f"{settings.host}:{settings.port}"
    try:
        listen(settings.host, settings.port).close()
    except StartError as error:
        if server is not None:
            yield Finding("port", "ok", f"{where} is in use, and a server answers")
        else:
            yield Finding("port", "problem", str(error), "choose another with INNERLOOP_PORT")
        return
    yield Finding("port", "ok", f"{where} is free")


def running(url: str, key: str | None) -> tuple[list[Finding], dict[str, Any] | None]:
    """Whether a server answers and is ready, and what it says about itself."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S) as client:
            ready, sessions = client.get("/readyz"), client.get("/sessions/doctor:nobody")
            found = ready.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        told = f"none answers at {url} ({error})"
        return [Finding("server", "warning", told, "start one with `innerloop serve`")], None
    except ValueError:
        mend = "name the server with --url, and its port with INNERLOOP_PORT"
        return [Finding("server", "problem", f"what answers at {url} is none of ours", mend)], None
    if not isinstance(found, dict) or "model" not in found:
        told = f"{url} is not ready: {found.get('detail') if isinstance(found, dict) else found}"
        return [Finding("server", "problem", told, "look at the server's log")], None
    told = f"{url} is ready, with {found['model']} ({found['base_fingerprint'][:16]})"
    findings = [Finding("server", "ok", told)]
    if sessions.status_code in (401, 403):
        level: Level = "warning" if key is None else "problem"
        detail = sessions.json().get("detail", sessions.text)
        mend = "show a key that it knows with --key or INNERLOOP_KEY"
        findings.append(Finding("key", level, detail, mend))
    return findings, found
