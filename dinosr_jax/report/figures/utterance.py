"""An utterance to see and to hear: waveform, spectrogram, phones and codes on one time axis.

Shapes: N layers, T frames, S samples.
"""

import io
import math
import wave
from collections.abc import Sequence
from typing import Any

import numpy as np

from dinosr_jax.report.figures.drawing import SMALL, WIDTH, Picture, new_figure, to_png
from dinosr_jax.report.run_files import SAMPLE_RATE, ExampleUtterance

MOST_SECONDS = 12.0  # drawn
_WIDE, _WIDE_SECONDS, _NARROW_SECONDS = 12.0, 3.0, 1.0  # inches; seconds in a line, at most
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.72, 0.12, 0.12, 0.5  # inches around the charts of a line
_TITLE = 0.25  # inches, on top
_WAVEFORM, _SPECTROGRAM, _TRACK = 0.5, 0.95, 0.24  # inches high


def to_wav(waveform: np.ndarray) -> bytes:
    """A waveform [S] as a WAV file of 16 bits, 16 kHz; its peak is brought to 0.9."""
    peak = float(np.abs(waveform).max(initial=0.0))
    samples = np.round(waveform * (0.9 * 32767 / max(peak, 1e-9))).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def utterance_picture(
    utterance: ExampleUtterance,
    *,
    receptive_field: tuple[int, int],
    ranks: dict[int, np.ndarray] | None = None,
) -> Picture:
    """Draws an utterance in lines, as text is set; shorter ones for narrow screens.

    `receptive_field` has the samples that a frame sees, and those from one to the next. `ranks` has
    by layer [V] places of the codes among those sorted by their phone, so that codes of one phone
    have like colours; where a layer is missing, the code itself.
    """
    seconds = min(utterance.waveform.size / SAMPLE_RATE, MOST_SECONDS)
    draw = lambda width, line: to_png(
        _draw(utterance, receptive_field, ranks or {}, seconds, width, line),
        dpi=160 if width == WIDTH else 110,
    )
    layers = ", ".join(str(layer) for layer in utterance.layers)
    alt = (
        f"Waveform, spectrogram, phones and codes of layers {layers} over {seconds:.2f} s of "
        f"{utterance.name}. Phones: {' '.join(_within(utterance, seconds))}."
    )
    caption = (
        "Read from top to bottom at one moment: the sound, the phone that a person hears, and the "
        "code that each layer gives. Good codes change where the phone changes, and the same "
        "phone gets the same few codes wherever it comes. Codes of like phones have like colours; "
        "a code is written where it lasts long enough."
        if ranks
        else "Read from top to bottom at one moment: the sound, the phone that a person hears, and "
        "the code that each layer gives. Good codes change where the phone changes, and the same "
        "phone gets the same few codes wherever it comes. A code is written where it lasts long "
        "enough."
    )
    if seconds < utterance.waveform.size / SAMPLE_RATE:
        caption += f" The first {seconds:g} s are drawn."
    wide, narrow = draw(_WIDE, _WIDE_SECONDS), draw(WIDTH, _NARROW_SECONDS)
    return Picture("utterance", _title(utterance), alt, caption, wide, narrow)


def _title(utterance: ExampleUtterance) -> str:
    return f"Sound, phones and codes: {utterance.name[-24:]}"


def _within(utterance: ExampleUtterance, seconds: float) -> list[str]:
    starts = utterance.phone_starts
    return [p for p, t in zip(utterance.phone_labels, starts, strict=True) if t < seconds]


def _draw(
    u: ExampleUtterance,
    receptive_field: tuple[int, int],
    ranks: dict[int, np.ndarray],
    seconds: float,
    width: float,
    line_seconds: float,
) -> Any:
    """The figure; all sizes in inches, placed by hand: labels and charts keep their places."""
    lines = max(1, math.ceil(seconds / line_seconds - 1e-6))
    line_seconds = seconds / lines
    tracks = (1 + u.layers.size) * _TRACK
    line = _TOP + _WAVEFORM + _SPECTROGRAM + tracks + 0.12 + _BOTTOM
    height = lines * line + _TITLE
    figure = new_figure(height, width=width, layout=None)
    figure.text(0.1 / width, 1 - 0.1 / height, _title(u), va="top", fontsize=11)
    picture, edges, hertz = _spectrogram(u.waveform)
    for k in range(lines):
        span = (k * line_seconds, (k + 1) * line_seconds)
        y = height - _TITLE - k * line - _TOP
        boxes = []
        for part in (_WAVEFORM, _SPECTROGRAM, tracks):
            y -= part
            box = (_LEFT / width, y / height, (width - _LEFT - _RIGHT) / width, part / height)
            boxes.append(figure.add_axes(box))
            y -= 0.06
        _draw_waveform(boxes[0], u.waveform, span)
        boxes[1].imshow(
            picture,
            origin="lower",
            aspect="auto",
            cmap="magma",
            extent=(edges[0], edges[1], 0, hertz / 1000),
        )
        boxes[1].set_ylabel("kHz", fontsize=SMALL)
        boxes[1].set_yticks([0, 4, 8])
        inches = (width - _LEFT - _RIGHT) / line_seconds
        _draw_tracks(boxes[2], u, receptive_field, ranks, span, inches)
        for axes in boxes:
            axes.set_xlim(*span)
        for axes in boxes[:2]:
            axes.tick_params(axis="x", labelbottom=False)
        boxes[2].set_xlabel("seconds" if k == lines - 1 else "", labelpad=1)
    return figure


def _draw_waveform(axes: Any, waveform: np.ndarray, span: tuple[float, float]) -> None:
    first, last = (round(t * SAMPLE_RATE) for t in span)
    piece = waveform[first:last]
    times = (first + np.arange(piece.size)) / SAMPLE_RATE
    axes.plot(times, piece, color="#333333", linewidth=0.4)
    peak = float(np.abs(waveform).max(initial=1e-9)) or 1.0
    axes.set_ylim(-1.05 * peak, 1.05 * peak)
    axes.set_yticks([])
    axes.set_ylabel("sound", rotation=0, ha="right", va="center", fontsize=SMALL)


def _spectrogram(waveform: np.ndarray) -> tuple[np.ndarray, tuple[float, float], float]:
    """Decibels [bins, windows] of 25 ms every 5 ms, its first and last time, its highest hertz."""
    from matplotlib import mlab

    size, hop = 400, 80
    padded = np.pad(waveform, size // 2)
    power, hertz, _ = mlab.specgram(padded, size, SAMPLE_RATE, noverlap=size - hop, pad_to=512)
    decibels = 10 * np.log10(power + 1e-12)
    loudest = decibels.max()
    half = hop / SAMPLE_RATE / 2
    edges = (-half, (power.shape[1] - 1) * hop / SAMPLE_RATE + half)
    return np.clip(decibels, loudest - 70, loudest), edges, float(hertz[-1])


def _draw_tracks(
    axes: Any,
    u: ExampleUtterance,
    receptive_field: tuple[int, int],
    ranks: dict[int, np.ndarray],
    span: tuple[float, float],
    inches: float,
) -> None:
    """A row of phones and a row of codes a layer; `inches` is how wide a second is."""
    from matplotlib import colormaps

    field, hop = receptive_field
    colours = colormaps["cividis"]
    spans = zip(u.phone_starts, u.phone_ends, strict=True)
    phones = [
        (start, end, label, "#ffffff" if k % 2 else "#dddddd")
        for k, ((start, end), label) in enumerate(zip(spans, u.phone_labels, strict=True))
    ]
    _draw_track(axes, 0, phones, span, inches)
    for row, (layer, codes) in enumerate(zip(u.layers.tolist(), u.codes, strict=True), start=1):
        rank = ranks.get(layer)
        most = max(int(codes.max()), 1) if rank is None else max(rank.size - 1, 1)
        runs = []
        for first, last in _runs(codes):
            code = int(codes[first])
            known = rank is not None and 0 <= code < rank.size
            colour = colours((rank[code] if known else code) / most)
            start = (first * hop + (field - hop) / 2) / SAMPLE_RATE
            end = (last * hop + (field - hop) / 2) / SAMPLE_RATE
            runs.append((start, end, str(code), colour))
        _draw_track(axes, row, runs, span, inches)
    axes.set_ylim(u.layers.size + 0.5, -0.5)
    names = ["phone", *(f"layer {layer}" for layer in u.layers)]
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)


def _draw_track(
    axes: Any, row: int, parts: Sequence[tuple], span: tuple[float, float], inches: float
) -> None:
    from matplotlib.colors import to_rgb

    parts = [
        part for part in parts if part[1] > span[0] and part[0] < span[1] and part[1] > part[0]
    ]
    if not parts:
        return
    starts, ends, _, colours = zip(*parts, strict=True)
    widths = np.subtract(ends, starts)
    axes.barh(
        [row] * len(parts), widths, 0.86, starts, color=colours, edgecolor="#888888", linewidth=0.5
    )
    for start, end, label, colour in parts:
        left, right = max(start, span[0]), min(end, span[1])
        if (right - left) * inches * 72 < 0.66 * SMALL * len(label):
            continue
        light = float(np.dot(to_rgb(colour), (0.3, 0.6, 0.1)))
        style = {"color": "black" if light > 0.5 else "white", "fontsize": SMALL}
        axes.text((left + right) / 2, row, label, ha="center", va="center_baseline", **style)


def _runs(codes: np.ndarray) -> list[tuple[int, int]]:
    """(first, last + 1) of each stretch of one code."""
    ends = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist(), codes.size]
    return list(zip(ends[:-1], ends[1:], strict=True))
