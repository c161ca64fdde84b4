"""Units of many recordings, written to files: JSON lines, TextGrids, statistics.

Lines are in the order of the input, one object an utterance; several layers have a file each. All
is written under temporary names, and renamed when it is whole: a run that is stopped leaves what
was there before, and starts anew.

Shapes: T frames, R runs of equal units.
"""

import contextlib
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.inference import batches, kmeans, outputs, textgrid, units
from dinosr_jax.inference import unit_statistics as statistics
from dinosr_jax.inference.extract import of_shard, parse_shard
from dinosr_jax.inference.inputs import Recording, open_inputs, printable, refuse

Key = Literal["file", "name", "fileid", "audio"]
Form = Literal["frames", "runs"]


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


def label(id_: str, *, key: Key) -> str:
    """What an utterance is called: its id (path below the input), or for other keys its basename.

    discophon's `file` may be a path; spidr's `name`, minimal-hubert's `fileid` and fastabx' `audio`
    are names without folder and extension.
    """
    return printable(id_ if key == "file" else PurePosixPath(id_).name)


def to_line(name: str, codes: np.ndarray, *, key: Key, form: Form) -> str:
    """One JSON object, as text with its line end.

    Args:
      name: What the utterance is called.
      codes: [T].
      key: The field of the name.
      form: 'frames': `units` has one unit a frame; 'runs': one a run, and `durations` its frames.

    Returns:
      The line.
    """
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
    layer: int | str | Sequence[int],
    source: units.Source = "codebook",
    tensor: units.Tensor | None = None,
    network: units.Network | None = None,
    kmeans_file: Path | None = None,
    fit: Fit | None = None,
    split: str = "",
    key: Key = "file",
    form: Form = "frames",
    textgrids: Path | None = None,
    shard: str = "0/1",
    bad: Literal["raise", "skip"] = "raise",
    options: batches.Options | None = None,
    progress: Callable[[float, float], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> UnitSummary:
    """Writes units of recordings; what is there already is replaced at the end.

    Args:
      model: Of `load`.
      inputs: As `open_inputs`.
      output: JSON lines, see `paths_of`; beside it OUTPUT's stem with .stats.json, and skipped.tsv.
        None where k-means is fitted and nothing else.
      layer: As `units.plan`.
      source: 'codebook', 'head' or 'kmeans'.
      tensor: As `units.plan`; 'block' where k-means is fitted.
      network: As `units.plan`; 'student' where k-means is fitted.
      kmeans_file: To be used, or where it is fitted to be written; then beside `output` if None.
      fit: Fits k-means on the inputs first.
      split: Split of a prepared dataset.
      key: Field of the utterance's name.
      form: 'frames', or 'runs' with durations.
      textgrids: Folder for one TextGrid an utterance, or None.
      shard: 'i/n': only part i (from 0) of n of the recordings.
      bad: 'raise' at the first recording that cannot be used, or 'skip' and list it.
      options: Batches and chunks.
      progress: Called with seconds of audio: more done, and the total.
      say: Called with what the user should know.

    Returns:
      What was written.

    Raises:
      AudioError: A recording cannot be used, or none can; or two have the same name.
      OutputError: It cannot be written.
      ValueError: As `units.plan`, `kmeans.fit`; or settings that contradict each other.
    """
    parts = parse_shard(shard)
    kmeans_file = _check(output, source, fit, kmeans_file, parts)
    skipped: dict[str, str] = {}
    on_bad = refuse if bad == "raise" else lambda r, why: skipped.setdefault(r.name, why)
    if fit is None:  # what contradicts the network is said before the files are looked at
        which = {"layer": layer, "source": source, "kmeans_file": kmeans_file}
        wanted = units.plan(model, **which, tensor=tensor, network=network)
    recordings = of_shard(open_inputs(inputs, split=split, on_bad=on_bad), parts)
    if output is not None:
        _check_names(recordings, key)
    told = {"options": options, "on_bad": on_bad, "say": say, "progress": progress}
    if fit is not None:
        what = {"layer": layer, "tensor": tensor or "block", "network": network or "student"}
        found = kmeans.fit(model, recordings, **what, **fit._asdict(), **told)
        kmeans.save(kmeans_file, found)
        say(f"{kmeans_file}: centroids of layer {', '.join(map(str, found.centroids))}")
        if output is None:
            return UnitSummary((kmeans_file,), {}, 0, 0.0, tuple(skipped.items()))
        recordings = [r for r in recordings if r.name not in skipped]
        wanted = units.plan(model, layer=layer, source=source, kmeans_file=found)
    files = paths_of(output, layers=wanted.layers, shard=parts)
    writer = _Writer(wanted, files, key, form, textgrids)
    try:
        written = writer.write(units.compute(wanted, recordings, **told), recordings)
    finally:
        _list_skipped(output, parts, tuple(skipped.items()))
    written = written._replace(skipped=tuple(skipped.items()))
    outputs.write_text(
        _side(output, parts), json.dumps(_described(written, writer), indent=2) + "\n"
    )
    return written


def _check(
    output: Path | None, source: str, fit: Fit | None, file: Path | None, shard: tuple[int, int]
) -> Path | None:
    """Refuses settings that contradict each other; returns the k-means file."""
    if fit is not None and source != "kmeans":
        raise ValueError(f"--fit is for --source=kmeans, found --source={source}")
    if fit is not None and shard[1] > 1:
        raise ValueError("--fit needs all of the input; fit without --shard, then use --kmeans")
    if output is None and (fit is None or file is None):
        raise ValueError("--output is missing (only --fit with --kmeans=FILE does without)")
    if file is None and fit is not None:
        return output.with_name(f"{output.stem}.kmeans.npz")
    if output is not None and output.is_dir():
        raise outputs.OutputError(f"{output} is a folder; expected a file, such as units.jsonl")
    if file is None and source == "kmeans":
        raise ValueError("--source=kmeans needs --kmeans=FILE, or --fit to make one")
    return file


def _check_names(recordings: Sequence[Recording], key: Key) -> None:
    names: dict[str, str] = {}
    for recording in recordings:
        name = label(recording.id, key=key)
        if name in names:
            raise audio.AudioError(
                f"{names[name]} and {recording.name} would both be called {name!r}; use --key=file"
            )
        names[name] = recording.name


class _Writer(NamedTuple):
    """Where units go, and how."""

    wanted: units.Plan
    files: list[Path]
    key: Key
    form: Form
    textgrids: Path | None

    def write(self, found: Any, recordings: Sequence[Recording]) -> UnitSummary:
        """Computes, holds the codes in a file without a name, then writes them in order."""
        size, layers = self.wanted.num_units, self.wanted.layers
        frames, runs = np.zeros((2, len(layers), size), np.int64)
        with contextlib.ExitStack() as stack:
            temporary = [stack.enter_context(outputs.replacing(path)) for path in self.files]
            lines = [stack.enter_context(path.open("w", encoding="utf-8")) for path in temporary]
            folder = self.files[0].parent
            spool = _Spool(stack.enter_context(tempfile.TemporaryFile(dir=folder)), len(layers))
            for utterance in found:
                spool.add(utterance)
            if recordings and not spool.places:
                raise audio.AudioError("no recording could be used; skipped.tsv says why")
            samples = 0
            for recording in recordings:
                if (entry := spool.places.get(recording.id)) is None:
                    continue
                samples += entry[2]
                name, codes = label(recording.id, key=self.key), spool.codes(recording.id)
                for i, row in enumerate(codes):
                    lines[i].write(to_line(name, row, key=self.key, form=self.form))
                    frames[i] += statistics.count(row, num_units=size)
                    runs[i] += statistics.count(statistics.run_lengths(row)[0], num_units=size)
                if self.textgrids is not None:
                    self._textgrid(recording.id, codes, entry[2] / audio.SAMPLE_RATE)
        rate = _frame_rate(self.wanted.model)
        described = {
            layer: statistics.describe(frames[i], runs[i], frame_rate=rate)
            for i, layer in enumerate(layers)
        }
        seconds = samples / audio.SAMPLE_RATE
        return UnitSummary(tuple(self.files), described, len(spool.places), seconds, ())

    def _textgrid(self, id_: str, codes: Sequence[np.ndarray], end: float) -> None:
        if ".." in Path(id_).parts or Path(id_).is_absolute():
            raise outputs.OutputError(f"{printable(id_)!r} would be written outside the output")
        hop = 1 / _frame_rate(self.wanted.model)
        layers = self.wanted.layers
        name = lambda layer: "units" if len(layers) == 1 else f"units-layer{layer:02}"
        tiers = {
            name(layer): textgrid.unit_intervals(row, hop_seconds=hop, end=end)
            for layer, row in zip(layers, codes, strict=True)
        }
        text = textgrid.to_textgrid(tiers, end=end)
        outputs.write_text(self.textgrids / f"{id_}.TextGrid", text)


class _Spool:
    """Codes on disk, until their turn comes: utterances are computed in another order."""

    def __init__(self, file: BinaryIO, num_layers: int):
        self._file, self._num_layers = file, num_layers
        self.places: dict[str, tuple[int, int, int]] = {}  # id -> offset, frames, samples

    def add(self, utterance: units.Utterance) -> None:
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
    return kmeans.convention_of(model, tensor="", network="")["frame_rate"]


def _side(output: Path, shard: tuple[int, int]) -> Path:
    (path,) = paths_of(output, layers=(0,), shard=shard)
    return path.with_name(f"{path.stem}.stats.json")


def _list_skipped(output: Path, shard: tuple[int, int], rows: Sequence[tuple[str, str]]) -> None:
    """Writes skipped.tsv; where nothing is left out, one that is not of this command stays."""
    part = "" if shard[1] == 1 else "_{}_{}".format(*shard)
    if rows or _side(output, shard).exists():
        outputs.write_skipped(output.parent, rows, name=f"skipped{part}.tsv")


def _described(written: UnitSummary, writer: _Writer) -> dict[str, Any]:
    """What the side file says."""
    wanted = writer.wanted
    text = {
        "source": wanted.source,
        "layers": list(wanted.layers),
        **kmeans.convention_of(wanted.model, tensor=wanted.tensor, network=wanted.network),
        "key": writer.key,
        "form": writer.form,
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
