"""The charts of a run: which lines there are, and that they can be told apart."""

import math

import pytest

from dinosr_jax.training.curves import (
    LEAST_SHARE,
    PANELS,
    draw_curves,
    draw_panel,
    line_styles,
    panel_lines,
)
from tests.report_runs import record_of

BY_NAME = {panel.name: panel for panel in PANELS}


def records(books=3, steps=(10, 20, 30)):
    found = [record_of(step, books=books, size=64, evaluated=step == 30) for step in steps]
    found[-1] |= {"eval_wer": 0.9, "eval_cer": 0.4}  # of a recogniser, which has no codes
    found[-1] |= {"explained_variance": 0.1, "target_std": 0.7, "prediction_std": 0.2}  # data2vec
    return found


def test_every_panel_of_a_whole_record_has_lines():
    counts = {panel.name: len(panel_lines(records(), panel)) for panel in PANELS}
    assert len(counts) == len(PANELS) and min(counts.values()) >= 1
    assert counts["target-perplexity"] == 3 and counts["codes-follow"] == 4


def test_lines_hold_what_was_recorded():
    found = panel_lines(records(), BY_NAME["loss"])
    assert list(found) == ["loss", "eval_loss"]
    assert found["loss"] == [(r["step"], r["loss"]) for r in records()]
    assert found["eval_loss"] == [(30, records()[2]["eval_loss"])]


def test_what_is_no_number_is_left_out():
    broken = records()
    broken[0]["loss"], broken[1]["loss"] = math.nan, None
    broken[2] |= {"gradient_norm": 0.0}
    assert [step for step, _ in panel_lines(broken, BY_NAME["loss"])["loss"]] == [30]
    assert [s for s, _ in panel_lines(broken, BY_NAME["norms"])["gradient_norm"]] == [10, 20]
    assert panel_lines([{"step": 1, "loss": "<b>"}], BY_NAME["loss"]) == {}
    assert panel_lines([], BY_NAME["loss"]) == {}


def test_position_is_that_of_held_out_speech_where_there_is_any():
    panel = BY_NAME["position-information"]
    assert list(panel_lines(records(), panel))[0] == "eval_position_information_0"
    assert list(panel_lines(records()[:2], panel))[0] == "position_information_0"


@pytest.mark.parametrize("order", ["none", "ranked"])
def test_lines_differ_in_dashes_and_in_lightness(order):
    styles = line_styles(4, order=order)
    assert len({str(style["linestyle"]) for style in styles}) == 4
    assert len({str(style["color"]) for style in styles}) == 4


def test_labels_are_the_layers():
    from dinosr_jax.report.figures.drawing import new_figure

    axes = new_figure(3).subplots()
    draw_panel(axes, records(), BY_NAME["pnmi"], labels=["layer 2", "layer 3", "layer 4"])
    assert [line.get_label() for line in axes.lines] == ["layer 2", "layer 3", "layer 4"]
    assert list(axes.lines[1].get_ydata()) == [records()[2]["eval_pnmi_1"]]


def test_a_small_share_looks_small():
    from dinosr_jax.report.figures.drawing import new_figure

    axes = new_figure(3).subplots()
    draw_panel(axes, records(), BY_NAME["position-information"])
    low, high = axes.get_ylim()
    assert low <= 0 and high >= LEAST_SHARE and low > -0.05


def test_all_of_a_run_are_one_picture(tmp_path):
    draw_curves(records(books=1, steps=(10, 20)), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    draw_curves([], tmp_path / "none.png")
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
