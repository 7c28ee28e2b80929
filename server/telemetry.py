"""What the server counts, in Prometheus' words: requests, feedback, and the engine at this moment.

Labels are bounded: a route's template, a method, a status, an outcome; never a session, a tenant or
a text. Every metric is in `docs/operating.md`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.engine import EngineStatus

PREFIX: Final = "innerloop_"
SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

GAUGES: Final[Mapping[str, tuple[str, str]]] = {
    "running": ("engine_running", "1 while the engine takes requests"),
    "waiting": ("requests_waiting", "answers that have no place in the batch yet"),
    "prefilling": ("prompts_prefilling", "prompts being computed"),
    "decoding": ("rows_decoding", "answers being written"),
    "choosing": ("requests_choosing", "requests whose choices are being scored"),
    "rows": ("rows_limit", "answers that the batch has room for"),
    "kv_bytes": ("kv_bytes", "keys and values of the batch, bytes"),
    "slots": ("slots_limit", "adapters that the device has room for"),
    "slots_resident": ("slots_resident", "adapters on the device"),
    "slots_pinned": ("slots_in_use", "adapters on the device that answer now"),
    "host_adapters": ("host_adapters", "adapters waiting in the host's memory"),
    "host_adapter_bytes": ("host_adapter_bytes", "adapters in the host's memory, bytes"),
    "adapts_waiting": ("adapts_waiting", "lessons that have not begun"),
    "adapts_learning": ("adapts_learning", "lessons under way"),
    "prefix_cache_bytes": ("prefix_cache_bytes", "prompts kept computed, bytes"),
    "prefix_cache_limit_bytes": ("prefix_cache_limit_bytes", "most of them, bytes"),
}
COUNTERS: Final[Mapping[str, tuple[str, str]]] = {
    "generated_tokens": ("generated_tokens", "tokens written"),
    "prefilled_tokens": ("prefilled_tokens", "tokens of prompts computed"),
    "prefix_cache_hit_tokens": ("prefix_cache_hit_tokens", "tokens of prompts found computed"),
    "prefix_cache_miss_tokens": ("prefix_cache_miss_tokens", "tokens of prompts not found"),
    "adapter_hits": ("adapter_hits", "requests whose adapter was in memory"),
    "adapter_misses": ("adapter_misses", "requests whose adapter was loaded from Redis"),
    "requests_finished": ("answers_finished", "answers written to their end"),
    "requests_cancelled": ("answers_cancelled", "answers whose clients went away"),
    "requests_failed": ("answers_failed", "answers that the engine failed on"),
    "adapts_finished": ("adapts_finished", "lessons done, accepted or not"),
    "adapts_failed": ("adapts_failed", "lessons that the engine failed on"),
}


class Telemetry:
    """Counts of one server."""

    def __init__(self) -> None:
        """Begin at 0."""
        self._registry = CollectorRegistry()
        self._requests = Histogram(
            PREFIX + "http_request_seconds",
            "from a request's arrival to the end of its answer, streams included",
            ("method", "route", "status"),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._first_bytes = Histogram(
            PREFIX + "http_first_byte_seconds",
            "from a request's arrival to the first byte of its answer's body",
            ("method", "route"),
            buckets=SECONDS,
            registry=self._registry,
        )
        self._feedback = Counter(
            PREFIX + "feedback_items",
            "feedback items of requests that were learned, by what became of them",
            ("outcome",),
            registry=self._registry,
        )
        self._adapts = Histogram(
            PREFIX + "adapt_seconds",
            "a lesson from its arrival in the engine to its verdict, waiting included",
            buckets=SECONDS,
            registry=self._registry,
        )
        self._replicas = Gauge(
            PREFIX + "replicas",
            "servers that live on the same Redis, this one included",
            registry=self._registry,
        )
        self._replicas.set(1)
        for outcome in ("accepted", "refused"):
            self._feedback.labels(outcome)

    def watch_replicas(self, live: Callable[[], int]) -> None:
        """Ask ``live`` how many servers there are, each time that somebody wants to know."""
        self._replicas.set_function(live)

    def learned(self, accepted: bool, items: int, duration_ms: float | None) -> None:
        """Count a request's feedback, once it is applied or refused."""
        self._feedback.labels("accepted" if accepted else "refused").inc(items)
        if duration_ms is not None:
            self._adapts.observe(duration_ms / 1e3)

    def answered(
        self, method: str, route: str, status: int, first_s: float, whole_s: float
    ) -> None:
        """Count a request's answer."""
        self._requests.labels(method, route, str(status)).observe(whole_s)
        self._first_bytes.labels(method, route).observe(first_s)

    def exposition(self, status: EngineStatus) -> bytes:
        """All metrics in Prometheus' text format."""
        engine = CollectorRegistry()
        engine.register(_Engine(status))
        return generate_latest(self._registry) + generate_latest(engine)


class _Engine(Collector):
    def __init__(self, status: EngineStatus) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        for field, (name, text) in GAUGES.items():
            yield GaugeMetricFamily(PREFIX + name, text, value=float(getattr(self._status, field)))
        for field, (name, text) in COUNTERS.items():
            value = float(getattr(self._status, field))
            yield CounterMetricFamily(PREFIX + name, text, value=value)
