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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.data.phones import textgrid
from dinosr_jax.errors import UserError
from dinosr_jax.inference import outputs
from dinosr_jax.inference.recordings import Chosen, Recording, parse_shard
from dinosr_jax.inference.units import kmeans, quantise, statistics, unit_file
from dinosr_jax.model.feature_encoder import receptive_field


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
    """How units are written: as of `unit_file.to_line`; `textgrids` is a folder.

    Where `format` is 'km', a recording that is left out has an empty line.
    """

    key: unit_file.Key = "file"
    form: unit_file.Form = "frames"
    textgrids: Path | None = None
    format: unit_file.Format = "jsonl"


def write_units(
    model: Any,
    inputs: Sequence[str | Path],
    *,
    output: Path | None,
    units: UnitOptions,
    style: Style | None = None,
    split: str = "",
    shard: str = "0/1",
    bad: Literal["raise", "skip"] = "raise",
    **run: Any,
) -> UnitSummary:
    """Writes units of recordings; what is there already is replaced at the end.

    `inputs`, `split`, `shard` and `bad` are as of `Chosen`; `run` has `options`, `say` and
    `progress` of `batched.run`. `output` is the file of units, as of `paths_of`, and beside it
    STEM.stats.json and skipped.tsv; None where k-means is fitted and nothing else.

    Raises:
      AudioError: A recording cannot be used, or none can; or two have the same name.
      OutputError: It cannot be written.
      UserError: As `quantise.plan`, `kmeans.fit`; or settings that contradict each other.
    """
    style = style or Style()
    file = _check(output, units, style, parse_shard(shard))
    # what contradicts the network is an error before the files are looked at
    plan = None if units.fit else _plan(model, units, file)
    chosen = Chosen(inputs, split=split, shard=shard, bad=bad)
    run["on_bad"] = chosen.on_bad
    names = {} if output is None else _names(chosen.recordings, style)
    if plan is None:
        plan = _fitted(model, chosen.recordings, units, file, run)
    if output is None:
        return UnitSummary((file,), {}, 0, 0.0, tuple(chosen.skipped.items()))
    usable = [r for r in chosen.recordings if r.name not in chosen.skipped]
    files = unit_file.paths_of(output, layers=plan.layers, shard=chosen.shard)
    side = unit_file.side_path(output, shard=chosen.shard)
    try:
        computed = quantise.compute(plan, usable, lengths="fitted", **run)
        written = _write(plan, computed, names, files, style)
    finally:
        if chosen.skipped or side.exists():  # else a list that is there is of another command
            outputs.list_skipped(output.parent, chosen)
    written = written._replace(skipped=tuple(chosen.skipped.items()))
    outputs.write_text(side, json.dumps(_describe(written, plan, style), indent=2) + "\n")
    return written


def _plan(model: Any, units: UnitOptions, file: Any) -> quantise.Plan:
    what = {"layer": units.layer, "source": units.source, "kmeans_file": file}
    return quantise.plan(model, **what, tensor=units.tensor, network=units.network)


def _fitted(
    model: Any, recordings: Sequence[Recording], units: UnitOptions, file: Path, run: dict[str, Any]
) -> quantise.Plan:
    """Fits k-means and writes it."""
    what = {"tensor": units.tensor or "block", "network": units.network or "student"}
    fitted = kmeans.fit(model, recordings, layer=units.layer, **what, **units.fit._asdict(), **run)
    kmeans.save(file, fitted)
    run.get("say", lambda text: None)(f"{file}: centroids of layer {units.layer}")
    return _plan(model, units, fitted)


def _check(
    output: Path | None, units: UnitOptions, style: Style, shard: tuple[int, int]
) -> Path | None:
    """Refuses settings that contradict each other; returns the k-means file."""
    file, fit = units.kmeans_file, units.fit
    if style.format == "km" and style.form == "runs":
        raise UserError(
            "--deduplicate: a .km has one unit a frame; expected --format=jsonl (with durations) "
            "or text (without)"
        )
    if style.format == "km" and style.key != "file":
        raise UserError(f"--key={style.key}: a .km has no names; expected --format=jsonl or text")
    if fit is not None and units.source != "kmeans":
        raise UserError(f"--fit is for --source=kmeans, found --source={units.source}")
    if fit is not None and shard[1] > 1:
        raise UserError("--fit needs all of the input; fit without --shard, then use --kmeans")
    if output is None and (fit is None or file is None):
        raise UserError("--output is missing (only --fit with --kmeans=FILE does without)")
    if output is not None and output.is_dir():
        raise outputs.OutputError(f"{output} is a folder; expected a file, such as units.jsonl")
    if file is None and fit is not None:
        return output.with_name(f"{output.stem}.kmeans.npz")
    if file is None and units.source == "kmeans":
        raise UserError("--source=kmeans needs --kmeans=FILE, or --fit to make one")
    return file


def _names(recordings: Sequence[Recording], style: Style) -> dict[str, str]:
    """The name of each recording by its id; refuses those that the lines cannot hold."""
    names = unit_file.names_of(recordings, key=style.key)
    for recording in recordings if style.format == "text" else ():
        if odd := re.search(r"[\t\r\n]", names[recording.id]):
            raise audio.AudioError(
                f"{recording.name!r}: found {odd[0]!r} in its name, which ends names or lines of "
                "--format=text; use --format=jsonl, or rename it"
            )
    return names


def _write(
    plan: quantise.Plan,
    utterances: Iterable[quantise.UtteranceUnits],
    names: Mapping[str, str],
    files: Sequence[Path],
    style: Style,
) -> UnitSummary:
    """Computes, holds the codes in a file without a name, then writes them in `names`' order."""
    layers, folder = plan.layers, files[0].parent
    outputs.remove_stale(folder, where="folder")
    frames, runs = np.zeros((2, len(layers), plan.num_units), np.int64)
    shape = {name: getattr(style, name) for name in ("key", "form", "format")}
    samples = 0
    with contextlib.ExitStack() as stack:
        lines = [stack.enter_context(outputs.replacing(path)) for path in files]
        spool = _Spool(stack.enter_context(tempfile.TemporaryFile(dir=folder)), len(layers))
        for utterance in utterances:
            spool.add(utterance)
        for id_, name in names.items():
            if (entry := spool.places.get(id_)) is None:
                if style.format == "km":
                    for file in lines:
                        file.write(b"\n")
                continue
            samples += entry[2]
            codes = spool.codes(id_)
            for i, row in enumerate(codes):
                lines[i].write(unit_file.to_line(name, row, **shape).encode())
                frames[i] += statistics.count(row, num_units=plan.num_units)
                of_runs = statistics.run_lengths(row)[0]
                runs[i] += statistics.count(of_runs, num_units=plan.num_units)
            if style.textgrids is not None:
                path = outputs.inside(style.textgrids, f"{id_}.TextGrid")
                _write_textgrid(path, plan, codes, entry[2] / audio.SAMPLE_RATE)
    rate = _frame_rate(plan.model)
    described = {
        layer: statistics.describe(frames[i], runs[i], frame_rate=rate)
        for i, layer in enumerate(layers)
    }
    seconds = samples / audio.SAMPLE_RATE
    return UnitSummary(tuple(files), described, len(spool.places), seconds, ())


def _write_textgrid(
    path: Path, plan: quantise.Plan, codes: Sequence[np.ndarray], end: float
) -> None:
    hop = 1 / _frame_rate(plan.model)
    name = lambda layer: "units" if len(plan.layers) == 1 else f"units-layer{layer:02}"
    tiers = {
        name(layer): unit_intervals(row, hop_seconds=hop, end=end)
        for layer, row in zip(plan.layers, codes, strict=True)
    }
    outputs.write_text(path, textgrid.to_textgrid(tiers, end=end), sync=False)


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
        codes = np.frombuffer(self._file.read(4 * frames * self._num_layers), "<i4")
        return codes.reshape(self._num_layers, frames)


def _frame_rate(model: Any) -> float:
    return audio.SAMPLE_RATE / receptive_field(model.config.model.conv_layers)[1]


def _describe(written: UnitSummary, plan: quantise.Plan, style: Style) -> dict[str, Any]:
    """The fields of the file with the statistics."""
    text = {
        "source": plan.source,
        "layers": list(plan.layers),
        **kmeans.convention_of(plan.model, tensor=plan.tensor, network=plan.network),
        "fingerprint": plan.model.fingerprint,
        "key": style.key,
        "form": style.form,
        "format": style.format,
        "num_utterances": written.num_utterances,
        "seconds": round(written.seconds, 3),
        "skipped": len(written.skipped),
        "statistics": {str(n): values._asdict() for n, values in written.statistics.items()},
    }
    if plan.source == "codebook":
        text["normalisation"] = "mean 0, variance 1 of every channel over the utterance"
    return text


def to_text(summary: UnitSummary) -> str:
    """The statistics, as lines to be printed."""
    lines = [
        f"layer {layer}: {of.units_in_use} of {of.num_units} units in use, perplexity "
        f"{of.perplexity:.1f}, {of.units_per_second:.1f} units/s, "
        f"{of.deduplicated_units_per_second:.1f} without repetitions, bit rate "
        f"{of.bit_rate:.1f} bit/s (by entropy {of.entropy_bit_rate:.1f})"
        for layer, of in summary.statistics.items()
    ]
    left_out = f", {len(summary.skipped)} left out (skipped.tsv)" if summary.skipped else ""
    hours = summary.seconds / 3600
    written = f"{summary.num_utterances} utterances, {hours:.2f} h{left_out}"
    return "\n".join([*lines, written, *map(str, summary.files)])


def unit_intervals(units: np.ndarray, *, hop_seconds: float, end: float) -> list[textgrid.Interval]:
    """Runs of equal units [T] as intervals without gaps from 0 to the utterance's end.

    Unit i begins at i * hop_seconds; the last lasts until `end`, the utterance's seconds.
    """
    values, durations = statistics.run_lengths(units)
    ends = [min(frames * hop_seconds, end) for frames in np.cumsum(durations).tolist()[:-1]]
    bounds = [0.0, *ends, end]
    return [
        textgrid.Interval(start, stop, str(unit))
        for start, stop, unit in zip(bounds[:-1], bounds[1:], values.tolist(), strict=True)
    ]
