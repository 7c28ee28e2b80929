"""A report's figures show the rule's own steps, and only what was judged."""

from __future__ import annotations

from typing import Any

from meta_training.evaluation.plots import calibration_figure, examples_figure, trade_figure
from meta_training.evaluation.report import ADAPTER, Summary


def point(value: float) -> dict[str, Any]:
    figures = dict.fromkeys(("exact", "changed", "choice", "confidence"), value)
    return {name: {"mean": mean, "ci95": 0.0} for name, mean in figures.items()}


def adapter_alone(cell: str) -> Summary:
    """An artifact of three inner steps, which is worse after five."""
    places = {"0 steps": point(0.1), "3 steps": point(0.75), "5 steps": point(0.25)}
    return {cell: {ADAPTER: places}}


def heights(axes: Any) -> list[float]:
    return [y for line in axes.lines for y in line.get_ydata()]


def test_replies_are_drawn_after_as_many_steps_as_the_rule_has() -> None:
    left, right = examples_figure(adapter_alone("house_reply 1-way 5-shot"), "3 steps").axes
    assert 75.0 in heights(left), "of the adapter, where nothing else was judged"
    assert 25.0 not in heights(left)
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["one reply"]
    assert right.get_legend() is None, "nothing was judged on labels"


def test_trade_and_calibration_are_read_there_too() -> None:
    summary = adapter_alone("label 5-way 5-shot")
    for figure in (trade_figure(summary, "3 steps"), calibration_figure(summary, "3 steps")):
        assert figure is not None
        assert 75.0 in heights(figure.axes[0])
        assert 25.0 not in heights(figure.axes[0])


def test_plain_lora_is_read_after_five() -> None:
    summary = {"label 5-way 5-shot": {"LoRA, pre-trained base": {"5 steps": point(0.5)}}}
    figure = trade_figure(summary, "3 steps")
    assert figure is not None
    assert 50.0 in heights(figure.axes[0])
