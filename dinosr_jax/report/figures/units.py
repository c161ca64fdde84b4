"""Figures of measured units and features: the answer, phones by code, and figures by layer.

Shapes: P phones, U units.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dinosr_jax.report.figures.drawing import (
    SMALL,
    Picture,
    new_figure,
    set_legend,
    set_title,
    to_png,
)
from dinosr_jax.report.run_files import numbers
from dinosr_jax.report.verdict import BASELINES, Answer, system_name
from dinosr_jax.training.curves import LEAST_SHARE, LINE_COLOURS

Row = dict[str, Any]
MOST_PHONES = 60  # rows of a picture; rarer ones share the last
_HATCHES = ("", "///", "...")


def answer_picture(answer: Answer) -> Picture:
    """Three bars: the best units, k-means on MFCC, the untrained network."""
    bars = answer.bars()
    figure = new_figure(0.95 + 0.75 * len(bars))
    axes = figure.subplots()
    labelled = [(f"{name} ({n} units)" if n else name, pnmi) for name, pnmi, n in bars]
    _bars(axes, labelled, "PNMI: 0 tells nothing about phones, 1 all", digits=".3f", above=0.32)
    axes.spines["left"].set_visible(False)
    title = "What the units tell about phones"
    set_title(axes, title)
    alt = "Bars of PNMI: " + "; ".join(f"{name} {pnmi:.3f}" for name, pnmi, _ in bars) + "."
    caption = "The longer the bar, the better the units. The first should be clearly the longest."
    return Picture("answer", title, alt, caption, to_png(figure))


def phones_by_code(counts: Any, phones: Sequence[str], *, name: str, title: str) -> Picture | None:
    """P(phone | code), codes sorted by their phone and phones by how often they are said.

    `counts` [P, U] are frames of a phone with a unit; None where they are no such table, or empty.
    """
    table = _counts(counts, len(phones))
    if table is None:
        return None
    order = np.argsort(-table.sum(1), kind="stable")
    order = order[table.sum(1)[order] > 0]
    labels = [phones[p] for p in order]
    table = table[order]
    if len(labels) > MOST_PHONES:
        rest = table[MOST_PHONES - 1 :].sum(0, keepdims=True)
        table = np.concatenate([table[: MOST_PHONES - 1], rest])
        rare = len(labels) - MOST_PHONES + 1
        labels = labels[: MOST_PHONES - 1] + [f"{rare} others"]
    used = np.flatnonzero(table.sum(0))
    shares = table[:, used] / table[:, used].sum(0)
    best = shares.argmax(0)
    columns = np.lexsort((-shares.max(0), best))
    figure = new_figure(1.7 + 0.155 * max(len(labels), 8))
    axes = figure.subplots()
    image = axes.imshow(
        shares[:, columns], aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest"
    )
    axes.set_yticks(range(len(labels)), [label[:12] for label in labels])
    axes.tick_params(axis="y", length=0, pad=2)
    axes.set_xlabel(f"the {used.size} codes in use, sorted by their phone")
    axes.set_ylabel("phone, the most frequent first")
    bar = figure.colorbar(image, ax=axes, location="bottom", fraction=0.04, pad=0.02, aspect=30)
    bar.set_label("P(phone | code)")
    set_title(axes, title)
    unused = table.shape[1] - used.size
    clear = int((shares.max(0) >= 0.5).sum())
    named = len(set(best.tolist()))
    caption = (
        f"{clear} of {used.size} codes mean one phone in half of their frames or more; {named} of "
        f"{len(labels)} phones have a code of their own."
        + (f" {unused} of {table.shape[1]} codewords never occur." if unused else "")
    )
    alt = (
        f"Picture of P(phone | code), {len(labels)} phones by {used.size} codes in use, {unused} "
        f"unused. {clear} codes mean one phone in half of their frames or more."
    )
    return Picture(name, title, alt, caption, to_png(figure))


def code_ranks(counts: Any) -> np.ndarray | None:
    """[U] int: the place of each code among those sorted by their phone; unused ones last.

    None where `counts` [P, U] is no table of counts.
    """
    table = _counts(counts, len(counts)) if isinstance(counts, list) else None
    if table is None:
        return None
    place = np.argsort(np.argsort(-table.sum(1), kind="stable"))  # of each phone, by frequency
    best = np.where(table.sum(0) > 0, place[table.argmax(0)], len(place))
    ranks = np.empty(table.shape[1], np.int64)
    ranks[np.argsort(best, kind="stable")] = np.arange(table.shape[1])
    return ranks


def _counts(counts: Any, num_phones: int) -> np.ndarray | None:
    """[P, U] float64, or None where it is not what was expected."""
    try:
        table = np.asarray(counts, np.float64)
    except (TypeError, ValueError):
        return None
    good = table.ndim == 2 and table.shape[0] == num_phones and table.size > 0
    if not good or not np.isfinite(table).all() or table.min() < 0 or table.sum() <= 0:
        return None
    return table


def layers_picture(
    rows: Sequence[Row], *, kind: str, metric: str, name: str, title: str, axis: str, caption: str
) -> Picture | None:
    """A metric by layer, a line for each system; bars where there is one layer alone.

    `rows` are of results of the `kind`, `name` that of the PNG; `axis` names the metric. None where
    no row has a number.
    """
    rows = [row for row in rows if numbers(row, metric) is not None]
    ours = [row for row in rows if row.get("system") not in BASELINES]
    if not rows:
        return None
    low = metric in ("error", "per")
    levels = [(_name(row, kind), row[metric]) for row in _levels(rows, metric, lower=low)]
    figure = new_figure(3.4)
    axes = figure.subplots()
    layers = sorted({row["layer"] for row in ours if isinstance(row.get("layer"), int)})
    others = [row for row in ours if not isinstance(row.get("layer"), int)]
    values = [f"{label} {value:.3g}" for label, value in levels]
    if len(layers) > 1:
        for k, label in enumerate(dict.fromkeys(_series(row, kind) for row in ours)):
            points = sorted(
                (row["layer"], row[metric])
                for row in ours
                if _series(row, kind) == label and isinstance(row.get("layer"), int)
            )
            if points:
                colour, mark = LINE_COLOURS[k % len(LINE_COLOURS)], "os^Dv"[k % 5]
                axes.plot(*zip(*points, strict=True), marker=mark, color=colour, label=label)
                values += [f"{label} layer {layer} {value:.3g}" for layer, value in points]
        for k, row in enumerate(others):
            colour, label = LINE_COLOURS[(k + 2) % len(LINE_COLOURS)], _name(row, kind)
            axes.axhline(row[metric], color=colour, linestyle="-.", label=label)
            values.append(f"{label} {row[metric]:.3g}")
        for (label, value), dashes in zip(levels, ("--", ":", "-.") * len(levels), strict=False):
            axes.axhline(value, color="#444444", linestyle=dashes, linewidth=1.6, label=label)
        axes.set_xticks(layers[:: max(1, len(layers) // 13)])
        axes.set_xlabel("layer")
        axes.set_ylabel(axis)
        axes.margins(y=0.12)
        axes.grid(alpha=0.3)
        set_legend(figure, axes)
    else:
        bars = [(_name(row, kind), row[metric]) for row in ours] + levels
        values = [f"{label} {value:.3g}" for label, value in bars]
        _bars(axes, bars, axis)
    set_title(axes, title)
    alt = f"{title}. {axis}: {'; '.join(values)}."
    return Picture(name, title, alt, caption, to_png(figure))


def _bars(
    axes: Any,
    bars: Sequence[tuple[str, float]],
    axis: str,
    *,
    digits: str = ".3g",
    above: float = 0.28,
) -> None:
    """Bars with their labels above them, and their values behind."""
    highest = max(abs(value) for _, value in bars) or 1.0
    for k, (label, value) in enumerate(bars):
        axes.barh(k, value, 0.45, color=LINE_COLOURS[k % 7], hatch=_HATCHES[k % 3], ec="white")
        axes.text(0, k - above, label, va="bottom")
        axes.text(value + 0.015 * highest, k, f"{value:{digits}}", va="center", weight="bold")
    axes.set_ylim(len(bars) - 0.6, -0.75)
    axes.set_xlim(0, 1.18 * highest)
    axes.set_yticks([])
    axes.set_xlabel(axis)


def _levels(rows: Sequence[Row], metric: str, *, lower: bool) -> list[Row]:
    """The best row of each baseline, of features and of units where both are told apart."""
    pick = min if lower else max
    by_baseline: dict[tuple[str, str], list[Row]] = {}
    for system in BASELINES:
        for row in rows:
            if row["system"] == system:
                by_baseline.setdefault((system, str(row.get("representation"))), []).append(row)
    return [pick(own, key=lambda row: row[metric]) for own in by_baseline.values()]


def _series(row: Row, kind: str) -> str:
    """What the line of a row is called."""
    of = row.get("representation")
    return system_name(row["system"], kind) + (f" ({of})" if of else "")


def _name(row: Row, kind: str) -> str:
    """What a row is called: its series and layer."""
    layer = row.get("layer")
    at = f", layer {layer}" if isinstance(layer, int) else ", all layers" if layer else ""
    return _series(row, kind) + at


def information_picture(table: Sequence[tuple[str, dict[str, float]]]) -> Picture | None:
    """What each codebook's codes follow: phones, position, loudness, speaker.

    `table` has (name of the codebook, {what: share of its information}); missing ones left out.
    """
    kinds = [kind for kind in _FOLLOWED if any(kind in values for _, values in table)]
    if not kinds:
        return None
    figure = new_figure(3.4)
    axes = figure.subplots()
    size = 0.8 / len(kinds)
    for k, kind in enumerate(kinds):
        where = np.arange(len(table)) + (k - (len(kinds) - 1) / 2) * size
        heights = [values.get(kind, 0.0) for _, values in table]
        colour, hatch = LINE_COLOURS[k], ("", "///", "...", "xx")[k]
        axes.bar(where, heights, size, label=kind, color=colour, hatch=hatch, edgecolor="white")
    labels = [name.replace(" ", "\n") for name, _ in table]
    step = max(1, -(-len(labels) // 8))
    axes.set_xticks(range(0, len(labels), step), labels[::step], fontsize=SMALL)
    highest = max(value for _, values in table for value in values.values())
    axes.set_ylim(0, 1.05 * max(highest, LEAST_SHARE))
    axes.set_ylabel("share of its information")
    axes.grid(axis="y", alpha=0.3)
    title = "What the codes follow, by codebook"
    set_title(axes, title)
    set_legend(figure, axes, columns=4)
    listed = "; ".join(
        f"{name}: " + ", ".join(f"{kind} {value:.3f}" for kind, value in values.items())
        for name, values in table
    )
    caption = (
        "On held-out speech, at the last evaluation. Phones should stand highest; position and "
        "speaker near 0. A codebook whose codes follow position or speaker has found an easy "
        "thing to predict, and no phones."
    )
    return Picture("codes-follow-by-codebook", title, f"Bars. {listed}.", caption, to_png(figure))


_FOLLOWED = ("phones", "position", "loudness", "speaker")
