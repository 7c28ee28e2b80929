"""The two controls that learn without an inner loop, on the same episodes.

Multi-task training judges session_init itself, as plain fine-tuning would. In-context training puts
a task's examples into the prompt and learns to answer after them (MetaICL, Min et al. 2022, arXiv
2110.15943, section 3.1); the examples are in the queries' prompts already.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from meta_training.algorithms.episodes import Episodes, Judged, add_aside


@dataclass(frozen=True)
class MultiTask:
    """Queries and support, answered with session_init."""

    takes_steps: bool = False

    def backward(
        self, episodes: Episodes, steps: int, progress: float, aside: Tensor | None = None
    ) -> Judged:
        """As of ``Algorithm``."""
        judged = episodes.judge(episodes.start, support_too=True)
        add_aside(judged.loss, aside).backward()
        return judged


@dataclass(frozen=True)
class InContext:
    """Queries whose prompts hold the support, answered by the base."""

    takes_steps: bool = False

    def backward(
        self, episodes: Episodes, steps: int, progress: float, aside: Tensor | None = None
    ) -> Judged:
        """As of ``Algorithm``."""
        judged = episodes.judge(None)
        add_aside(judged.loss, aside).backward()
        return judged
