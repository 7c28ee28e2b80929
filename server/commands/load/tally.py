"""What came of a load: latencies in histograms, failures by kind, and one row for every visit.

A histogram is HdrHistogram's (hdrhistogram.org): three significant digits from a microsecond to an
hour, in memory that does not grow.
"""

from collections import Counter
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from hdrh.histogram import HdrHistogram

from server.commands.load.plan import Kind, Load

LONGEST_S = 3600
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
FULL = frozenset({"503", "429"})
"""A server that says it is full. Counted apart: load was refused, nothing broke."""


class Measure(StrEnum):
    """What is measured, all of it in ms. Arrivals count from when they were due."""

    FIRST_TOKEN = "first_token_ms"  # arrival to the first text of its answer
    WHOLE_ANSWER = "whole_answer_ms"  # arrival to the end of its answer
    TOKEN_GAP = "token_gap_ms"  # between two pieces of text
    ADAPT = "adapt_ms"  # arrival of a lesson to its verdict
    FEEDBACK = "feedback_ms"  # sending a correction to its verdict
    TAUGHT_FIRST_TOKEN = "taught_first_token_ms"  # lesson or correction to first text that uses it
    SENT_LATE = "sent_late_ms"  # arrival to its sending: the generator's own delay


@dataclass(slots=True)
class Visit:
    """How one arrival went; seconds from when it was due."""

    due_s: float
    kind: Kind
    session: int
    late_s: float = 0.0
    first_s: float | None = None
    whole_s: float | None = None  # to the end of everything that it came for
    failure: str | None = None
    tokens: int = 0


@dataclass
class Tally:
    """Counts of a load. What came in the warm-up is left out, by who calls."""

    load: Load
    visits: list[Visit] = field(default_factory=list)
    refused_lessons: int = 0  # by the guard: an answer, no failure
    failures: Counter[tuple[str, str]] = field(default_factory=Counter)  # (deed, kind)
    stopped_s: float | None = None  # after the beginning, by Ctrl-C
    histograms: dict[Measure, HdrHistogram] = field(
        default_factory=lambda: {m: HdrHistogram(1, LONGEST_S * 10**6, 3) for m in Measure}
    )

    def took(self, measure: Measure, seconds: float) -> None:
        """Count one duration."""
        micro = min(max(round(seconds * 1e6), 1), LONGEST_S * 10**6)
        self.histograms[measure].record_value(micro)

    def failed(self, visit: Visit, deed: str, kind: str) -> None:
        """Count a failure; a visit has at most one."""
        visit.failure = kind
        self.failures[deed, kind] += 1

    @property
    def counted_s(self) -> float:
        """How long arrivals were counted."""
        if self.stopped_s is None:
            return self.load.duration_s
        return min(max(self.stopped_s - self.load.warmup_s, 0.0), self.load.duration_s)

    def summary(self) -> dict[str, Any]:
        """Everything as JSON: rates a second, latencies in ms."""
        seconds = self.counted_s
        end_s = self.load.warmup_s + seconds
        done = [v for v in self.visits if v.whole_s is not None and v.failure is None]
        in_time = [v for v in done if v.due_s + (v.whole_s or 0.0) <= end_s]
        kinds = Counter(str(visit.kind) for visit in self.visits)
        failures: dict[str, Counter[str]] = {}
        for (deed, kind), count in self.failures.items():
            failures.setdefault(kind, Counter())[deed] += count
        return {
            "load": asdict(self.load),
            "counted_s": seconds,
            "interrupted": self.stopped_s is not None,
            "arrivals": len(self.visits),
            "arrivals_by_kind": dict(sorted(kinds.items())),
            "offered_per_s": _rate(len(self.visits), seconds),
            "achieved_per_s": _rate(len(in_time), seconds),
            "tokens_per_s": _rate(sum(v.tokens for v in in_time), seconds),
            "answered": len(done),
            "refused_by_server": sum(sum(failures.get(k, {}).values()) for k in FULL),
            "failed": sum(n for (_, k), n in self.failures.items() if k not in FULL),
            "failures": {kind: dict(deeds) for kind, deeds in sorted(failures.items())},
            "lessons_refused_by_guard": self.refused_lessons,
            "latencies": {str(m): _percentiles(h) for m, h in self.histograms.items()},
        }


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 3) if seconds else 0.0


def _percentiles(histogram: HdrHistogram) -> dict[str, float] | None:
    count = histogram.get_total_count()
    if not count:
        return None
    found = {f"p{p:g}": histogram.get_value_at_percentile(p) / 1e3 for p in PERCENTILES}
    mean, most = histogram.get_mean_value() / 1e3, histogram.get_max_value() / 1e3
    return {"count": count, "mean": round(mean, 3), **found, "max": most}
