"""OpenTelemetry spans of a request and what it waits for: off, and free, unless wanted.

`OTEL_EXPORTER_OTLP_ENDPOINT` (or `…_TRACES_ENDPOINT`) turns them on, and all of the SDK's other
variables work; before that, nothing of OpenTelemetry is imported by us. Spans hold names, numbers
and ids, never a prompt, a completion or a key. They begin with a request: what the server does by
itself has none.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span, Tracer

Value = str | int | float | bool

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

_OFF: AbstractContextManager[None] = nullcontext()
_tracer: "Tracer | None" = None


class SpansMissing(RuntimeError):
    """Spans are wanted, and what sends them is not installed."""


def wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment says where spans go."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    return any(environment.get(name) for name in ENDPOINTS)


def enable(version: str, exporter: "SpanExporter | None" = None) -> Callable[[], None]:
    """Collect spans and send them by OTLP over HTTP; returns what sends the last ones and ends it.

    Raises:
        SpansMissing: the extra `otel` is not installed.
    """
    global _tracer
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SpansMissing(
            f"{' or '.join(ENDPOINTS)} asks for traces, which need a package that is not there "
            f"({error.name}): pip install 'innerloop[otel]', or unset it"
        ) from error
    named = {"service.name": "innerloop", "service.version": version}
    if os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    ):
        del named["service.name"]
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
    _tracer = provider.get_tracer("innerloop", version)

    def end() -> None:
        global _tracer
        _tracer = None
        provider.shutdown()

    return end


@contextmanager
def request(headers: Mapping[str, str]) -> Iterator["Span | None"]:
    """A request's span, the child of its caller's where `traceparent` names one; None when off."""
    if _tracer is None:
        yield None
        return
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent = TraceContextTextMapPropagator().extract(headers)
    with _tracer.start_as_current_span(
        "request", context=parent, kind=SpanKind.SERVER, record_exception=False
    ) as span:
        yield span


def finish(span: "Span", name: str, status: int, attributes: Mapping[str, Value]) -> None:
    """Say what a request was, which is known at its end."""
    from opentelemetry.trace import StatusCode

    span.update_name(name)
    span.set_attributes({**attributes, "http.response.status_code": status})
    if status >= 500:
        span.set_status(StatusCode.ERROR)


def span(name: str, **attributes: Value) -> AbstractContextManager[object]:
    """A part of the current request, from here to the end of the block.

    Not around a `yield`: the rest of a generator may run in another context.
    """
    if _tracer is None or not _inside():
        return _OFF
    # What an error says may be what somebody asked.
    return _tracer.start_as_current_span(name, attributes=attributes, record_exception=False)


def record(name: str, begin_s: float, end_s: float, **attributes: Value) -> None:
    """A part of the current request that is over, between two times of `time.monotonic`."""
    if _tracer is None or not _inside():
        return
    # Whoever is held up between the two clocks gets too little.
    ago_s = max(time.time() - time.monotonic() for _ in range(3))
    begin_ns, end_ns = (int((at + ago_s) * 1e9) for at in (begin_s, end_s))
    _tracer.start_span(name, attributes=attributes, start_time=begin_ns).end(end_ns)


def _inside() -> bool:
    from opentelemetry.trace import get_current_span

    return get_current_span().get_span_context().is_valid
