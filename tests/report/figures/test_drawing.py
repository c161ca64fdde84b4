"""Figures of the report: letters large enough, and the published run beside one's own."""

import io
import math

import pytest
from matplotlib.text import Text
from PIL import Image

from dinosr_jax.report import published_results
from dinosr_jax.report.figures import drawing
from dinosr_jax.report.figures.drawing import curve_picture, new_figure, style, to_png
from dinosr_jax.training.curves import PANELS
from tests.report_runs import record_of

BY_NAME = {panel.name: panel for panel in PANELS}
LABELS = [f"layer {k}" for k in range(1, 25)]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, in order."""
    found = []
    monkeypatch.setattr(drawing, "to_png", lambda figure: found.append(figure) or b"")
    with style():
        yield found


def records(last, books=3):
    steps = [last * k // 20 for k in range(1, 21)]
    others = {"eval_wer": 0.9, "eval_cer": 0.4}  # of a recogniser, which has no codes
    others |= {"explained_variance": 0.1, "target_std": 0.7, "prediction_std": 0.2}  # of data2vec
    return [record_of(step, books=books, size=64, evaluated=True) | others for step in steps]


def draw(name, last, *, size=64, books=3, **options):
    options = {"labels": LABELS, "codebook_size": size} | options
    return curve_picture(records(last, books), BY_NAME[name], **options)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.name)
def test_letters_are_nine_points_and_more_and_axes_are_named(drawn, panel):
    picture = draw(panel.name, 800, books=24)
    (figure,) = drawn
    figure.draw_without_rendering()
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    assert min(text.get_fontsize() for text in texts) >= 9
    (axes,) = figure.axes
    assert axes.get_title(loc="left").replace("\n", " ") == panel.title == picture.title
    assert axes.get_xlabel() == "updates" and axes.get_ylabel() == panel.axis
    assert not any("$" in text.get_text() for text in texts)
    legend = figure.legends[0].get_texts()
    (title,) = [text for text in texts if text.get_text() == axes.get_title(loc="left")]
    for text in (title, axes.xaxis.label, axes.yaxis.label, *legend):
        extent = text.get_window_extent()
        assert extent.width and figure.bbox.padded(1).count_contains(extent.corners()) == 4, text
    assert len(legend) <= drawing.MAX_NAMED


def published(figure):
    return [line for line in figure.axes[0].lines if line.get_label().startswith("published")]


def test_the_published_run_is_scaled_to_the_codebook_and_ends_with_the_run(drawn):
    picture = draw("loss", 9_000)
    (line,) = published(drawn[-1])
    points = published_results.PUBLISHED_CURVE[:4]
    assert list(line.get_xdata()) == [0, 2_500, 5_000, 10_000]
    scale = math.log(64) / math.log(256)
    assert list(line.get_ydata()) == pytest.approx([scale * p.loss for p in points])
    assert "scaled to 64 codewords" in line.get_label() and "another size" in picture.caption
    draw("target-perplexity", 9_000)
    (line,) = published(drawn[-1])
    assert list(line.get_ydata()) == pytest.approx([p.target_perplexity / 4 for p in points])


def test_the_published_run_as_it_is_for_codebooks_of_its_size(drawn):
    draw("loss", 400_000, size=256)
    (line,) = published(drawn[-1])
    assert list(line.get_ydata()) == [point.loss for point in published_results.PUBLISHED_CURVE]
    assert line.get_label() == "published run"


def test_the_published_run_is_not_drawn_where_it_cannot_be_compared(drawn):
    picture = draw("loss", 800)
    assert published(drawn[-1]) == [] and "begins to say something at 2,500" in picture.caption
    picture = draw("accuracy", 400_000)
    assert published(drawn[-1]) == [] and "published" not in picture.caption
    picture = draw("loss", 400_000, published=False)  # of another objective
    assert published(drawn[-1]) == [] and "published" not in picture.caption


def test_levels_are_lines_with_names(drawn):
    draw("pnmi", 800, levels=[("MFCC k-means", 0.37), ("untrained network", 0.1)])
    *_, mfcc, untrained = drawn[-1].axes[0].lines
    assert mfcc.get_label() == "MFCC k-means" and set(mfcc.get_ydata()) == {0.37}
    assert mfcc.get_linestyle() != untrained.get_linestyle()
    draw("pnmi", 8, levels=[("MFCC k-means", 0.9)])  # far above the codes, and yet to be seen
    low, high = drawn[-1].axes[0].get_ylim()
    assert low <= 0 and high > 0.9


def test_words_for_those_who_do_not_see_it(drawn):
    found = draw("loss", 800).alt
    first, last = (records(800)[k]["loss"] for k in (0, -1))
    assert "updates 40 to 800" in found and f"loss {first:.3g} to {last:.3g}" in found


def test_nothing_recorded_is_no_figure(drawn):
    options = {"labels": [], "codebook_size": None}
    assert curve_picture([{"step": 1, "x": 2}], BY_NAME["loss"], **options) is None
    assert curve_picture([{"step": 1, "loss": 2}], BY_NAME["loss"], **options) is not None


def test_letters_without_a_picture_and_formulas_are_shown_as_they_are(recwarn):
    with style():
        figure = new_figure(1.0)
        figure.text(0.1, 0.5, "\U0001f600 $x_{1$ \u0259")
        png = to_png(figure)
    assert not recwarn.list
    with Image.open(io.BytesIO(png)) as image:
        assert image.size == (round(4.5 * drawing.DPI), drawing.DPI)
        assert image.text["Software"] == drawing.SOFTWARE
