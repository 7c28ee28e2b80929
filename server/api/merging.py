"""Several servers' metrics as one exposition: each sample with the replica that it is of."""

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL = "replica"


def merged(expositions: Sequence[tuple[str, bytes]]) -> bytes:
    """One exposition out of those of replicas by name; the names must be few and come again."""
    families: dict[str, Metric] = {}
    for name, text in expositions:
        for family in text_string_to_metric_families(text.decode()):
            kept = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            kept.samples += [
                sample._replace(labels=sample.labels | {LABEL: name}) for sample in family.samples
            ]
    registry = CollectorRegistry()
    registry.register(_Families(list(families.values())))
    return generate_latest(registry)


class _Families(Collector):
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families
