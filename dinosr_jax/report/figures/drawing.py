"""Figures that a person reads without the paper beside them, also in print and on a telephone.

Every figure is 4.5 inches wide, or has a narrow version that is: on a telephone, where it is shown
about 375 pixels wide, its smallest text of 9 points is then 10 pixels high.
"""

import contextlib
import io
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from dinosr_jax.report import published_results
from dinosr_jax.training.curves import Panel, draw_panel, line_name, panel_lines

WIDTH = 4.5  # inches
DPI = 170
SMALL, TEXT = 9, 10  # points
SOFTWARE = "dinosr_jax report"  # written into every PNG
_STYLE = {
    "font.size": TEXT,
    "font.family": ["DejaVu Sans"],
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "text.parse_math": False,  # labels hold what they hold, dollars too
}
MAX_NAMED = 12  # lines of a legend


class Picture(NamedTuple):
    """A finished figure."""

    name: str  # of its PNG
    title: str
    alt: str  # what it shows, in words
    caption: str  # how to read it
    png: bytes
    narrow_png: bytes = b""  # for narrow screens, where it is another


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Fonts and colours of all figures, whatever the user's own settings; put back after."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def new_figure(height: float, *, width: float = WIDTH, layout: str | None = "constrained") -> Any:
    """A figure without global state and display; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Any, *, dpi: int = DPI) -> bytes:
    """A figure as PNG; letters that the font lacks are boxes, without a warning each."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, dpi=dpi, format="png", metadata={"Software": SOFTWARE})
    return buffer.getvalue()


def set_title(axes: Any, title: str, *, width: float = WIDTH) -> None:
    """A title that fits into the width of its figure, in inches."""
    axes.set_title(textwrap.fill(title, int(10.5 * width)))


def set_legend(figure: Any, axes: Any, *, columns: int = 2) -> None:
    """Names of the lines, under the axes, where they hide nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > MAX_NAMED:  # in an order: the first, some between, the last
        kept = sorted({round(k * (len(labels) - 1) / (MAX_NAMED - 1)) for k in range(MAX_NAMED)})
        handles, labels = [handles[k] for k in kept], [labels[k] for k in kept]
    if labels:
        longest = max(map(len, labels))
        columns = 4 if longest < 10 else columns if longest < 26 else 1
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)))


def thousands(axis: Any) -> None:
    """Ticks of an axis of updates: 5,000 or 200k, few enough not to touch."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    text = lambda x, _: f"{x / 1000:,g}k" if abs(x) >= 10_000 else f"{x:,g}"
    axis.set_major_formatter(FuncFormatter(text))
    axis.set_major_locator(MaxNLocator(5))


def plain_decades(axis: Any) -> None:
    """Ticks of a logarithmic axis as plain numbers: 0.5, 1, 2."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axis.set_minor_formatter(NullFormatter())


def curve_picture(
    records: Sequence[dict[str, Any]],
    panel: Panel,
    *,
    labels: Sequence[str],
    codebook_size: int | None,
    levels: Sequence[tuple[str, float]] = (),
    published: bool = True,
) -> Picture | None:
    """One chart over the updates, with the published run where the two can be compared.

    Args:
      records: Of metrics.jsonl, in the order of the steps.
      panel: Which.
      labels: A name of each codebook.
      codebook_size: V, to which the published run is scaled; None where it is not known.
      levels: (name, height) of horizontal lines to compare with.
      published: False where it was trained with another objective, and cannot be compared.

    Returns:
      None where nothing of it is recorded.
    """
    lines = panel_lines(records, panel)
    if not lines:
        return None
    figure = new_figure(3.4)
    axes = figure.subplots()
    draw_panel(axes, records, panel, labels=labels)
    last_step = max(points[-1][0] for points in lines.values())
    note = _draw_published(axes, panel, last_step, codebook_size) if published else ""
    for (name, height), dashes in zip(levels, ("--", ":", "-.") * len(levels), strict=False):
        axes.axhline(height, color="#444444", linestyle=dashes, linewidth=1.4, label=name)
    set_title(axes, panel.title)
    axes.set_xlabel("updates")
    axes.set_ylabel(panel.axis)
    thousands(axes.xaxis)
    if panel.scale == "log":
        plain_decades(axes.yaxis)
    set_legend(figure, axes)
    ends = [
        f"{_named(field, panel, k, labels)} {points[0][1]:.3g} to {points[-1][1]:.3g}"
        for k, (field, points) in enumerate(lines.items())
    ]
    alt = f"Lines over updates {_span(lines)}. {panel.axis}, from first to last: {'; '.join(ends)}."
    caption = " ".join(part for part in (panel.hint, note) if part)
    return Picture(f"curve-{panel.name}", panel.title, alt, caption, to_png(figure))


def _named(field: str, panel: Panel, k: int, labels: Sequence[str]) -> str:
    if panel.lines == "codebook":
        return labels[k] if k < len(labels) else f"codebook {k}"
    return line_name(field, panel)


def _span(lines: dict[str, list[tuple[int, float]]]) -> str:
    steps = [step for points in lines.values() for step, _ in points]
    return f"{min(steps):,} to {max(steps):,}"


def _draw_published(axes: Any, panel: Panel, last_step: int, size: int | None) -> str:
    """Adds the published run to a panel of loss or perplexity; returns what to say of it."""
    import math

    if panel.name not in ("loss", "target-perplexity"):
        return ""
    points = published_results.overlapping(last_step)
    if not points:
        return (
            f"The published run is not drawn: its record begins to say something at "
            f"{published_results.PUBLISHED_CURVE[1].step:,} updates."
        )
    if panel.name == "loss":
        full = math.log(published_results.CODEBOOK_SIZE)
        scale = math.log(size) / full if size and size > 1 else 1.0
        heights = [scale * point.loss for point in points]
    else:
        scale = size / published_results.CODEBOOK_SIZE if size else 1.0
        heights = [scale * point.target_perplexity for point in points]
    scaled = "" if scale == 1 else f", scaled to {size} codewords"
    steps = [point.step for point in points]
    label = f"published run{scaled}"
    style = {"color": "#777777", "linestyle": "--", "marker": "o", "markersize": 4}
    axes.plot(steps, heights, label=label, linewidth=1.6, zorder=0.5, **style)
    return (
        f"Grey: the published LibriSpeech run{scaled}. It has other data and another size: compare "
        "the shape, not the height."
    )
