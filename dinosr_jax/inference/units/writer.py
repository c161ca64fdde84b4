"""Units of many recordings, written to files: JSON lines or plain text, TextGrids, statistics.

Lines are in the order of the input, one an utterance; several layers have a file each. All
is written under temporary names, and renamed when it is whole: a run that is stopped leaves what
was there before, and starts anew.

Shapes: T frames, R runs of equal units.
"""

import contextlib
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.data.phones import textgrid
from dinosr_jax.inference import outputs
from dinosr_jax.inference.features.writer import of_shard, parse_shard, skipped_name
from dinosr_jax.inference.recordings import Recording, open_inputs, printable, refuse
from dinosr_jax.inference.units import kmeans, quantise, statistics
from dinosr_jax.model.feature_encoder import receptive_field

Key = Literal["file", "name", "fileid", "audio"]
Form = Literal["frames", "runs"]
Format = Literal["jsonl", "text", "km"]


class UnitSummary(NamedTuple):
    """What was written: the files, statistics of each layer, recordings left out (name, reason)."""

    files: tuple[Path, ...]
    statistics: dict[int, statistics.UnitStatistics]
    num_utterances: int
    seconds: float
    skipped: tuple[tuple[str, str], ...]


class Fit(NamedTuple):
    """How k-means is fitted before it is used."""

    num_clusters: int = 500
    seed: int = 0
    max_frames: int = kmeans.MAX_FRAMES


class UnitOptions(NamedTuple):
    """Which units: the arguments of `quantise.plan`; `fit` fits k-means on the input first.

    Then `tensor` and `network` are 'block' and 'student' where they are None, and `kmeans_file` is
    written: OUTPUT's stem with .kmeans.npz, if it is None.
    """

    layer: int | str | Sequence[int]
    source: quantise.Source = "codebook"
    tensor: quantise.Tensor | None = None
    network: quantise.Network | None = None
    kmeans_file: Path | None = None
    fit: Fit | None = None


class Style(NamedTuple):
    """How units are written.

    `key` is the field of the utterance's name; `form` says frames or runs; `textgrids` is a folder.
    `format` is 'jsonl'; 'text', name, tab, units; or 'km', HuBERT's, which has no names and an
    empty line for what is left out.
    """

    key: Key = "file"
    form: Form = "frames"
    textgrids: Path | None = None
    format: Format = "jsonl"


def label(id_: str, *, key: Key) -> str:
    """What an utterance is called: its id (path below the input), or for other keys its basename.

    discophon's `file` may be a path; spidr's `name`, minimal-hubert's `fileid` and fastabx' `audio`
    are names without folder and extension.
    """
    return printable(id_ if key == "file" else PurePosixPath(id_).name)


def to_line(name: str, codes: np.ndarray, *, key: Key, form: Form, format: Format = "jsonl") -> str:
    """One utterance, as text with its line end.

    Args:
      name: What the utterance is called.
      codes: [T].
      key: The field of the name.
      form: 'frames': `units` has one unit a frame; 'runs': one a run, and `durations` its frames
        (in JSON lines only).
      format: As of `Style`.

    Returns:
      The line.
    """
    if format != "jsonl":
        shown = statistics.run_lengths(codes)[0] if form == "runs" else codes
        units_text = " ".join(map(str, shown.tolist())) + "\n"
        return units_text if format == "km" else f"{name}\t{units_text}"
    line: dict[str, Any] = {key: name}
    if form == "runs":
        runs, durations = statistics.run_lengths(codes)
        line |= {"units": runs.tolist(), "durations": durations.tolist()}
    else:
        line["units"] = codes.tolist()
    return json.dumps(line) + "\n"


def paths_of(output: Path, *, layers: Sequence[int], shard: tuple[int, int]) -> list[Path]:
    """One file a layer: units.jsonl, of several units-layer05.jsonl, of a shard units_0_4.jsonl."""
    part = "" if shard[1] == 1 else "_{}_{}".format(*shard)
    tails = [f"-layer{layer:02}" if len(layers) > 1 else "" for layer in layers]
    return [output.with_name(f"{output.stem}{tail}{part}{output.suffix}") for tail in tails]


def write_units(
    model: Any,
    inputs: Sequence[str | Path],
    *,
    output: Path | None,
    wish: UnitOptions,
    style: Style | None = None,
    split: str = "",
    shard: str = "0/1",
    bad: Literal["raise", "skip"] = "raise",
    **run: Any,
) -> UnitSummary:
    """Writes units of recordings; what is there already is replaced at the end.

    Args:
      model: Of `load`.
      inputs: As `open_inputs`.
      output: File of units, see `paths_of`; beside it its stem with .stats.json, and skipped.tsv.
        None where k-means is fitted and nothing else.
      wish: Which units.
      style: How they are written; None for the defaults.
      split: Split of a prepared dataset.
      shard: 'i/n': only part i (from 0) of n of the recordings.
      bad: 'raise' at the first recording that cannot be used, or 'skip' and list it.
      **run: `options`, `say` and `progress` of `batched.run`.

    Returns:
      What was written.

    Raises:
      AudioError: A recording cannot be used, or none can; or two have the same name.
      OutputError: It cannot be written.
      ValueError: As `quantise.plan`, `kmeans.fit`; or settings that contradict each other.
    """
    parts, style = parse_shard(shard), style or Style()
    file = _check(output, wish, style, parts)
    # what contradicts the network is said before the files are looked at
    wanted = None if wish.fit else _plan(model, wish, file)
    skipped: dict[str, str] = {}
    run["on_bad"] = refuse if bad == "raise" else lambda r, why: skipped.setdefault(r.name, why)
    found = open_inputs(inputs, split=split, on_bad=run["on_bad"])
    recordings = of_shard(found, parts)
    if output is not None:
        _check_names(recordings, style)
    if wanted is None:
        wanted = _fitted(model, recordings, wish, file, run)
    usable = [r for r in recordings if r.name not in skipped]
    if output is None:
        return UnitSummary((file,), {}, 0, 0.0, tuple(skipped.items()))
    writer = _Writer(wanted, paths_of(output, layers=wanted.layers, shard=parts), style)
    try:
        found = quantise.compute(wanted, usable, lengths="fitted", **run)
        written = writer.write(found, recordings)
    finally:
        _list_skipped(output, parts, tuple(skipped.items()))
    written = written._replace(skipped=tuple(skipped.items()))
    described = _described(written, writer)
    outputs.write_text(_side(output, parts), json.dumps(described, indent=2) + "\n")
    return written


def _plan(model: Any, wish: UnitOptions, file: Any) -> quantise.Plan:
    what = {"layer": wish.layer, "source": wish.source, "kmeans_file": file}
    return quantise.plan(model, **what, tensor=wish.tensor, network=wish.network)


def _fitted(
    model: Any, recordings: Sequence[Recording], wish: UnitOptions, file: Path, run: dict[str, Any]
) -> quantise.Plan:
    """Fits k-means and writes it."""
    what = {"tensor": wish.tensor or "block", "network": wish.network or "student"}
    found = kmeans.fit(model, recordings, layer=wish.layer, **what, **wish.fit._asdict(), **run)
    kmeans.save(file, found)
    run.get("say", lambda text: None)(f"{file}: centroids of layer {wish.layer}")
    return _plan(model, wish, found)


def _check(
    output: Path | None, wish: UnitOptions, style: Style, shard: tuple[int, int]
) -> Path | None:
    """Refuses settings that contradict each other; returns the k-means file."""
    file, fit = wish.kmeans_file, wish.fit
    if style.format == "km" and style.form == "runs":
        raise ValueError(
            "--deduplicate: a .km has one unit a frame; expected --format=jsonl (with durations) "
            "or text (without)"
        )
    if style.format == "km" and style.key != "file":
        raise ValueError(f"--key={style.key}: a .km has no names; expected --format=jsonl or text")
    if fit is not None and wish.source != "kmeans":
        raise ValueError(f"--fit is for --source=kmeans, found --source={wish.source}")
    if fit is not None and shard[1] > 1:
        raise ValueError("--fit needs all of the input; fit without --shard, then use --kmeans")
    if output is None and (fit is None or file is None):
        raise ValueError("--output is missing (only --fit with --kmeans=FILE does without)")
    if output is not None and output.is_dir():
        raise outputs.OutputError(f"{output} is a folder; expected a file, such as units.jsonl")
    if file is None and fit is not None:
        return output.with_name(f"{output.stem}.kmeans.npz")
    if file is None and wish.source == "kmeans":
        raise ValueError("--source=kmeans needs --kmeans=FILE, or --fit to make one")
    return file


def _check_names(recordings: Sequence[Recording], style: Style) -> None:
    """Refuses names that the lines cannot tell."""
    names: dict[str, str] = {}
    for recording in recordings:
        name = label(recording.id, key=style.key)
        if style.format == "text" and (odd := re.search(r"[\t\r\n]", name)):
            raise audio.AudioError(
                f"{recording.name!r}: found {odd[0]!r} in its name, which ends names or lines of "
                "--format=text; use --format=jsonl, or rename it"
            )
        if name in names:
            raise audio.AudioError(
                f"{names[name]} and {recording.name} would both be called {name!r}; use --key=file"
            )
        names[name] = recording.name


class _Writer(NamedTuple):
    """Where units go, and how."""

    wanted: quantise.Plan
    files: list[Path]
    style: Style

    def write(self, found: Any, recordings: Sequence[Recording]) -> UnitSummary:
        """Computes, holds the codes in a file without a name, then writes them in order."""
        size, layers = self.wanted.num_units, self.wanted.layers
        outputs.remove_stale(self.files[0].parent, where="folder")
        frames, runs = np.zeros((2, len(layers), size), np.int64)
        shape = {name: getattr(self.style, name) for name in ("key", "form", "format")}
        with contextlib.ExitStack() as stack:
            lines = [stack.enter_context(outputs.replacing(path)) for path in self.files]
            folder = self.files[0].parent
            spool = _Spool(stack.enter_context(tempfile.TemporaryFile(dir=folder)), len(layers))
            for utterance in found:
                spool.add(utterance)
            samples = 0
            for recording in recordings:
                if (entry := spool.places.get(recording.id)) is None:
                    if self.style.format == "km":
                        for file in lines:
                            file.write(b"\n")
                    continue
                samples += entry[2]
                name, codes = label(recording.id, key=self.style.key), spool.codes(recording.id)
                for i, row in enumerate(codes):
                    lines[i].write(to_line(name, row, **shape).encode())
                    frames[i] += statistics.count(row, num_units=size)
                    runs[i] += statistics.count(statistics.run_lengths(row)[0], num_units=size)
                if self.style.textgrids is not None:
                    self._textgrid(recording.id, codes, entry[2] / audio.SAMPLE_RATE)
        rate = _frame_rate(self.wanted.model)
        described = {
            layer: statistics.describe(frames[i], runs[i], frame_rate=rate)
            for i, layer in enumerate(layers)
        }
        seconds = samples / audio.SAMPLE_RATE
        return UnitSummary(tuple(self.files), described, len(spool.places), seconds, ())

    def _textgrid(self, id_: str, codes: Sequence[np.ndarray], end: float) -> None:
        path = outputs.inside(self.style.textgrids, f"{id_}.TextGrid")
        hop = 1 / _frame_rate(self.wanted.model)
        layers = self.wanted.layers
        name = lambda layer: "units" if len(layers) == 1 else f"units-layer{layer:02}"
        tiers = {
            name(layer): unit_intervals(row, hop_seconds=hop, end=end)
            for layer, row in zip(layers, codes, strict=True)
        }
        text = textgrid.to_textgrid(tiers, end=end)
        outputs.write_text(path, text, sync=False)


class _Spool:
    """Codes on disk, until their turn comes: utterances are computed in another order."""

    def __init__(self, file: BinaryIO, num_layers: int):
        self._file, self._num_layers = file, num_layers
        self.places: dict[str, tuple[int, int, int]] = {}  # id -> offset, frames, samples

    def add(self, utterance: quantise.UtteranceUnits) -> None:
        """Appends the codes of an utterance."""
        codes = np.stack(utterance.codes).astype("<i4")
        place = (self._file.tell(), codes.shape[1], utterance.num_samples)
        self.places[utterance.recording.id] = place
        self._file.write(codes.tobytes())

    def codes(self, id_: str) -> np.ndarray:
        """Codes of an utterance: [layers, T]."""
        offset, frames, _ = self.places[id_]
        self._file.seek(offset)
        found = np.frombuffer(self._file.read(4 * frames * self._num_layers), "<i4")
        return found.reshape(self._num_layers, frames)


def _frame_rate(model: Any) -> float:
    return audio.SAMPLE_RATE / receptive_field(model.config.model.conv_layers)[1]


def _side(output: Path, shard: tuple[int, int]) -> Path:
    (path,) = paths_of(output, layers=(0,), shard=shard)
    return path.with_name(f"{path.stem}.stats.json")


def _list_skipped(output: Path, shard: tuple[int, int], rows: Sequence[tuple[str, str]]) -> None:
    """Writes skipped.tsv; where nothing is left out, one that is not of this command stays."""
    if rows or _side(output, shard).exists():
        outputs.write_skipped(output.parent, rows, name=skipped_name(shard))


def _described(written: UnitSummary, writer: _Writer) -> dict[str, Any]:
    """What the side file says."""
    wanted = writer.wanted
    text = {
        "source": wanted.source,
        "layers": list(wanted.layers),
        **kmeans.convention_of(wanted.model, tensor=wanted.tensor, network=wanted.network),
        "fingerprint": wanted.model.fingerprint,
        "key": writer.style.key,
        "form": writer.style.form,
        "format": writer.style.format,
        "num_utterances": written.num_utterances,
        "seconds": round(written.seconds, 3),
        "skipped": len(written.skipped),
        "statistics": {str(n): found._asdict() for n, found in written.statistics.items()},
    }
    if wanted.source == "codebook":
        text["normalisation"] = "mean 0, variance 1 of every channel over the utterance"
    return text


def to_text(summary: UnitSummary) -> str:
    """The statistics, as lines to be printed."""
    lines = [
        f"layer {layer}: {found.units_in_use} of {found.num_units} units in use, perplexity "
        f"{found.perplexity:.1f}, {found.units_per_second:.1f} units/s, "
        f"{found.deduplicated_units_per_second:.1f} without repetitions, bit rate "
        f"{found.bit_rate:.1f} bit/s (by entropy {found.entropy_bit_rate:.1f})"
        for layer, found in summary.statistics.items()
    ]
    left_out = f", {len(summary.skipped)} left out (skipped.tsv)" if summary.skipped else ""
    hours = summary.seconds / 3600
    written = f"{summary.num_utterances} utterances, {hours:.2f} h{left_out}"
    return "\n".join([*lines, written, *map(str, summary.files)])


def unit_intervals(units: np.ndarray, *, hop_seconds: float, end: float) -> list[textgrid.Interval]:
    """Runs of equal units as intervals without gaps from 0 to the utterance's end.

    Args:
      units: [T]; unit i begins at i * hop_seconds.
      hop_seconds: Step of the frames.
      end: Length of the utterance in seconds; the last unit lasts until then.

    Returns:
      One interval a run.
    """
    values, durations = statistics.run_lengths(units)
    ends = [min(frames * hop_seconds, end) for frames in np.cumsum(durations).tolist()[:-1]]
    bounds = [0.0, *ends, end]
    return [
        textgrid.Interval(start, stop, str(unit))
        for start, stop, unit in zip(bounds[:-1], bounds[1:], values.tolist(), strict=True)
    ]
