"""Figures of units, against tables worked out by hand."""

import numpy as np
import pytest
from matplotlib.text import Text

from dinosr_jax.report.figures import units as unit_figures
from dinosr_jax.report.figures.drawing import style
from dinosr_jax.report.figures.units import (
    answer_picture,
    code_ranks,
    information_picture,
    layers_picture,
    phones_by_code,
)
from dinosr_jax.report.verdict import Answer

# phones a, b, c (b most frequent), codes 0 to 4: 0 and 4 are b, 1 is c, 2 never occurs, 3 is a
COUNTS = [[0, 1, 0, 30, 5], [60, 0, 0, 10, 15], [0, 9, 0, 0, 0]]


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    found = []
    monkeypatch.setattr(unit_figures, "to_png", lambda figure: found.append(figure) or b"")
    with style():
        yield found


def row(system, layer, **metrics):
    return {"system": system, "layer": layer, **metrics}


def test_codes_are_sorted_by_their_phone_and_phones_by_frequency(drawn):
    picture = phones_by_code(COUNTS, ["a", "b", "c"], name="x", title="Units")
    axes, _ = drawn[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "a", "c"]
    expected = [[1, 0.75, 0.25, 0], [0, 0.25, 0.75, 0.1], [0, 0, 0, 0.9]]  # codes 0, 4, 3, 1
    np.testing.assert_allclose(axes.images[0].get_array(), expected)
    assert "4 of 4 codes mean one phone" in picture.caption
    assert "3 of 3 phones" in picture.caption and "1 of 5 codewords never occur" in picture.caption


def test_ranks_are_the_places_of_that_order():
    assert code_ranks(COUNTS).tolist() == [0, 3, 4, 2, 1]
    assert code_ranks(None) is code_ranks([]) is code_ranks([["x"]]) is None


def test_rare_phones_share_a_row_and_unheard_ones_have_none(drawn):
    counts = np.diag([1000 - k for k in range(100)] + [0])
    phones_by_code(counts, [f"p{k}" for k in range(101)], name="x", title="Units")
    axes, _ = drawn[0].axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert len(labels) == 60 and labels[:2] == ["p0", "p1"] and labels[-1] == "41 others"
    assert axes.images[0].get_array().shape == (60, 100)


@pytest.mark.parametrize(
    "counts", [None, [], [[1, 2]], [[1], [2, 3], [1]], [[0], [0], [0]], [[-1], [2], [3]], "abc"]
)
def test_what_is_no_table_is_no_figure(counts):
    assert phones_by_code(counts, ["a", "b", "c"], name="x", title="Units") is None


def test_the_answer_is_three_bars_with_their_numbers(drawn):
    pnmi = {"codebook": 0.42, "mfcc": 0.37, "untrained": 0.1}
    rows = [row(s, 3 if s != "mfcc" else None, pnmi=p, num_units=64) for s, p in pnmi.items()]
    picture = answer_picture(Answer({}, *rows))
    (axes,) = drawn[0].axes
    widths = [container[0].get_width() for container in axes.containers]
    assert widths == [0.42, 0.37, 0.1]
    texts = [text.get_text() for text in axes.texts]
    assert texts == [
        *("units found, layer 3 (64 units)", "0.420", "k-means on MFCC (64 units)", "0.370"),
        *("untrained network, layer 3 (64 units)", "0.100"),
    ]
    assert len({bars[0].get_hatch() for bars in axes.containers}) == 3
    assert "MFCC 0.370" in picture.alt
    assert min(t.get_fontsize() for t in drawn[0].findobj(Text)) >= 9


TEXT = {"name": "x", "title": "Which layer", "axis": "PNMI", "caption": ""}


def test_layers_are_a_line_and_baselines_levels(drawn):
    rows = [row("codebook", k, pnmi=0.1 * k) for k in (4, 2, 3)]
    rows += [row("mfcc", None, pnmi=0.37), row("untrained", 1, pnmi=0.1)]
    rows += [row("untrained", 2, pnmi=0.2), row("codebook", 5, pnmi=float("nan"))]
    picture = layers_picture(rows, kind="units", metric="pnmi", **TEXT)
    line, mfcc, untrained = drawn[0].axes[0].lines
    assert list(line.get_xdata()) == [2, 3, 4]
    assert list(line.get_ydata()) == pytest.approx([0.2, 0.3, 0.4])
    assert set(mfcc.get_ydata()) == {0.37} and mfcc.get_label() == "MFCC k-means"
    assert set(untrained.get_ydata()) == {0.2}  # its best layer
    assert untrained.get_label() == "untrained network, layer 2"
    assert "layer 3 0.3" in picture.alt


def test_of_an_error_the_best_is_the_lowest(drawn):
    rows = [row("codebook", k, error=0.1 * k) for k in (1, 2)]
    rows += [row("untrained", 1, error=0.3), row("untrained", 2, error=0.2)]
    layers_picture(rows, kind="abx", metric="error", **TEXT)
    assert set(drawn[0].axes[0].lines[-1].get_ydata()) == {0.2}


def test_features_and_units_are_two_lines(drawn):
    rows = [
        row("codebook", k, error=0.1 * k + 0.05 * (of == "units"), representation=of)
        for of in ("features", "units")
        for k in (2, 1)
    ]
    rows += [row("mfcc", None, error=0.2, representation="features")]
    layers_picture(rows, kind="abx", metric="error", **TEXT)
    features, units, mfcc = drawn[0].axes[0].lines
    assert features.get_label() == "this network (features)"
    assert list(features.get_ydata()) == [0.1, 0.2]
    assert units.get_label() == "this network (units)" and mfcc.get_label() == "MFCC (features)"
    assert list(units.get_ydata()) == pytest.approx([0.15, 0.25])


def test_one_layer_alone_is_a_bar(drawn):
    rows = [row("codebook", "weighted", per=0.3), row("mfcc", None, per=0.5)]
    layers_picture(rows, kind="recognition", metric="per", **TEXT)
    assert [bars[0].get_width() for bars in drawn[0].axes[0].containers] == [0.3, 0.5]
    assert layers_picture(rows, kind="recognition", metric="wer", **TEXT) is None


def test_what_the_codes_follow_is_a_group_of_bars_a_codebook(drawn):
    table = [("layer 2", {"phones": 0.3, "position": 0.1}), ("layer 3", {"phones": 0.2})]
    picture = information_picture(table)
    phones, position = drawn[0].axes[0].containers
    assert [bar.get_height() for bar in phones] == [0.3, 0.2]
    assert [bar.get_height() for bar in position] == [0.1, 0.0]
    assert "layer 2: phones 0.300, position 0.100" in picture.alt
    assert information_picture([("layer 2", {})]) is None
