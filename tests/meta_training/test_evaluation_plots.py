"""A report's figures show the rule's own steps, and only what was judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from meta_training.evaluation.cells import Cell
from meta_training.evaluation.examples_plot import examples_figure
from meta_training.evaluation.plots import calibration_figure, trade_figure
from meta_training.evaluation.report import ADAPTER, SERVED, Summary


def point(value: float) -> dict[str, Any]:
    figures = dict.fromkeys(("exact", "changed", "choice", "confidence"), value)
    return {name: {"mean": mean, "ci95": 0.0} for name, mean in figures.items()}


def adapter_alone(cell: str) -> Summary:
    """An artifact of three inner steps, which is worse after five."""
    places = {"0 steps": point(0.1), "3 steps": point(0.75), "5 steps": point(0.25)}
    return {cell: {ADAPTER: places}}


def heights(axes: Any) -> list[float]:
    return [y for line in axes.lines for y in line.get_ydata()]


def of_cells(names: Sequence[str], **figures: dict[str, float]) -> Summary:
    """Each cell judged once after three steps; ``figures`` by method."""
    known = {"served": SERVED, "adapter": ADAPTER}
    return {
        name: {
            known[method]: {"3 steps": {f: {"mean": v, "ci95": None} for f, v in values.items()}}
            for method, values in figures.items()
        }
        for name in names
    }


def panels(summary: Summary) -> dict[str, list[str]]:
    """Title -> names of the lines."""
    figure = examples_figure(summary, "3 steps")
    assert figure is not None
    return {
        each.get_title(): [text.get_text() for text in each.get_legend().get_texts()]
        for each in figure.axes
    }


def test_replies_are_drawn_after_as_many_steps_as_the_rule_has() -> None:
    summary = adapter_alone("house_reply 1-way 5-shot") | adapter_alone("house_reply 1-way 1-shot")
    for methods in summary.values():
        for point_ in methods[ADAPTER].values():
            del point_["choice"]
    figure = examples_figure(summary, "3 steps")
    assert figure is not None
    (axes,) = figure.axes
    assert heights(axes)[:2] == [75.0, 75.0], "of the adapter, where nothing else was judged"
    assert 25.0 not in heights(axes)
    assert list(axes.get_xticks()) == [1, 5]
    assert panels(summary) == {"Free answers, exactly right": ["house_reply 1-way"]}


def test_one_number_of_examples_is_no_line() -> None:
    assert examples_figure(adapter_alone("label 5-way 5-shot"), "3 steps") is None
    two = ["label 5-way 5-shot", "label 5-way 1-shot, 5 queries", "label 5-way 3-shot, 20% wrong"]
    assert examples_figure(of_cells(two, served={"choice": 0.5}), "3 steps") is None
    assert examples_figure({}, "3 steps") is None


def test_cells_are_lines_by_family_ways_and_queries() -> None:
    names = [f"label 5-way {shots}-shot, 5 queries" for shots in (1, 5)]
    names += [f"sst2 2-way {shots}-shot" for shots in (1, 3, 10)]
    names += ["label 56-way 5-shot", "sst2 2-way 1-shot, 20% wrong"]
    assert panels(of_cells(names, served={"choice": 0.5, "exact": 0.4})) == {
        "Labels picked from choices": ["label 5-way, 5 queries", "sst2 2-way"]
    }


def test_free_answers_are_drawn_by_their_likeness_too() -> None:
    """What is spoken without recall has a chrF, with it the nats alone."""
    names = [f"shout 1-way {shots}-shot" for shots in (1, 3)]
    served, adapter = {"exact": 0.2, "nats": 2.5}, {"exact": 0.1, "nats": 2.0, "chrf": 0.6}
    both = examples_figure(of_cells(names, served=served, adapter=adapter), "3 steps")
    assert both is not None
    found = {axes.get_title(): heights(axes)[:2] for axes in both.axes}
    assert found == {
        "Free answers, exactly right": [20.0, 20.0],
        "Free answers, likeness to the right one": [60.0, 60.0],
    }
    alone = examples_figure(of_cells(names, served=served), "3 steps")
    assert alone is not None
    assert heights(alone.axes[1])[:2] == [2.5, 2.5]
    assert alone.axes[1].get_ylabel() == "nats/token, less is better"
    shown = of_cells(names, adapter=adapter | {"obeys": 0.9})
    assert "Free answers, in the form shown" in panels(shown)


def test_an_alternative_alone_is_drawn_by_name() -> None:
    names = [f"label 5-way {shots}-shot" for shots in (1, 3)]
    tfidf = {"TF-IDF nearest centroid": {"-": point(0.5)}}
    drawn = panels(dict.fromkeys(names, tfidf))
    assert drawn == {"Labels picked from choices": ["TF-IDF nearest centroid", "label 5-way"]}


@given(
    cell=st.builds(
        Cell,
        st.sampled_from(["label", "house_reply", "my, own 5-way"]),
        st.integers(1, 99),
        st.integers(1, 99),
        st.integers(0, 100),
        st.none() | st.integers(1, 9),
    )
)
def test_a_cell_is_known_by_its_name(cell: Cell) -> None:
    assert Cell.called(cell.name) == cell


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
