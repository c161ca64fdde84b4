"""Text of many recordings: emissions computed in batches, decoded meanwhile, written as JSON lines.

Finished lines are kept in a file beside the output until all are there; a run that was stopped goes
on with the others. It goes on where a batch ended, so that the rest is batched, and rounded, as if
it had never stopped: the output is the same to the byte.

Shapes: T frames, V symbols.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.inference import outputs
from dinosr_jax.inference.features.writer import Summary, of_shard, parse_shard, skipped_name
from dinosr_jax.inference.forward import batched
from dinosr_jax.inference.recognition import decode_pool, emissions
from dinosr_jax.inference.recognition.decoding import Decoder
from dinosr_jax.inference.recognition.transcript_file import TranscriptFile
from dinosr_jax.inference.recordings import Recording, open_inputs, printable, refuse
from dinosr_jax.inference.units.writer import Key, label, paths_of


class Decoding(NamedTuple):
    """What makes text of emissions: gives a decoder, settings of it as plain values, who runs it.

    A run that goes on must have the same settings. `make` and `by` are as of
    `decode_pool.decode_all`.
    """

    make: Callable[[], Decoder]
    settings: Mapping[str, Any]
    by: decode_pool.By = "threads"


def transcribe_files(
    model: Any,
    inputs: Sequence[str | Path],
    *,
    output: Path,
    decoding: Decoding,
    key: Key = "file",
    emissions_folder: Path | None = None,
    split: str = "",
    shard: str = "0/1",
    bad: Literal["raise", "skip"] = "raise",
    options: batched.Options | None = None,
    progress: Callable[[float, float], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> Summary:
    """Writes what is said in recordings: a JSON object a line, in the order of the input.

    Args:
      model: A recogniser (`load`).
      inputs: As `open_inputs`.
      output: JSON lines; OUTPUT's stem with .about.json beside it says how they were made.
      decoding: How text is made of emissions.
      key: Field of the utterance's name, as of units.
      emissions_folder: Where to keep the emissions [T, V] as .npy; None for nowhere.
      split: Of a prepared dataset.
      shard: 'i/n': only part i (from 0) of n of the recordings.
      bad: 'raise' at the first recording that cannot be used, or 'skip' and list it.
      options: Batches, chunks and threads.
      progress: As `batched.run`.
      say: Called with what the user should know.

    Returns:
      What was done.

    Raises:
      ValueError: The network was not fine-tuned.
      AudioError: A recording cannot be used, and is not to be skipped; or two have one name.
      OutputError: It cannot be written, or is of another network, input or other settings.
      ChildProcessError: A process that decodes was killed.
    """
    emissions.check_recogniser(model)
    parts, options = parse_shard(shard), options or batched.Options()
    (output,) = paths_of(output, layers=(0,), shard=parts)
    skipped: list[tuple[str, str]] = []
    on_bad = refuse if bad == "raise" else lambda r, reason: skipped.append((r.name, reason))
    recordings = of_shard(open_inputs(inputs, split=split, on_bad=on_bad), parts)
    names = _names(recordings, key)
    about = {"inputs": [printable(str(Path(path).absolute())) for path in inputs]}
    about |= {"split": split, "key": key, "chunk_seconds": options.chunk_seconds}
    about |= {"overlap_seconds": options.overlap_seconds, **decoding.settings}
    with TranscriptFile(output, key=key, about=_of_model(model) | about) as file:
        if emissions_folder is not None:
            _claim_emissions(emissions_folder, model, recordings)
        run = {"on_bad": on_bad, "options": options, "progress": progress, "say": say}
        place = _Place(file, names, emissions_folder)
        before = place.complete(model, recordings, decoding, **run)
        done = [names[r.id] for r in recordings if names[r.id] in file.lines]
        file.finish(done)
    outputs.write_skipped(output.parent, skipped, name=skipped_name(parts))
    return Summary(len(done) - before, before, tuple(skipped))


class _Place(NamedTuple):
    """Where lines and emissions go."""

    file: TranscriptFile
    names: Mapping[str, str]
    emissions: Path | None

    def has(self, recording: Recording) -> bool:
        """Whether a recording is done."""
        folder = self.emissions
        there = folder is None or outputs.is_whole(_emissions_path(folder, recording.id))
        return there and self.names[recording.id] in self.file.lines

    def complete(
        self,
        model: Any,
        recordings: Sequence[Recording],
        decoding: Decoding,
        *,
        options: batched.Options,
        say: Callable[[str], None],
        **run: Callable,
    ) -> int:
        """Computes and writes what is not there; returns how many were there."""
        todo = [recording for recording in recordings if not self.has(recording)]
        before = len(recordings) - len(todo)
        if before:
            say(f"{before} of {len(recordings)} are there already")
        if not todo:  # no decoder is made for nothing
            return before
        computed = emissions.parts(model, todo, options=options, say=say, **run)
        found = ((part, part.arrays) for part in computed)
        workers = {"by": decoding.by, "num_workers": options.num_workers}
        for part, array, hypothesis in decode_pool.decode_all(found, decoding.make, **workers):
            if self.emissions is not None:
                _keep(array, self.emissions, part.recording.id)
            self.file.add(self.names[part.recording.id], hypothesis, commit=part.ends_batch)
        if self.emissions is not None:
            os.sync()  # once for all files
        return before


def _of_model(model: Any) -> dict[str, Any]:
    return {"checkpoint": model.path, "fingerprint": model.fingerprint, "step": model.step}


def _names(recordings: Sequence[Recording], key: Key) -> dict[str, str]:
    """What each recording is called, by id."""
    names: dict[str, str] = {}
    users: dict[str, str] = {}
    for recording in recordings:
        name = label(recording.id, key=key)
        if name in users:
            raise audio.AudioError(
                f"{users[name]} and {recording.name} would both be called {name!r}; use --key=file"
            )
        users[name] = recording.name
        names[recording.id] = name
    return names


def _claim_emissions(folder: Path, model: Any, recordings: Sequence[Recording]) -> None:
    """Says what the arrays of a folder are, or refuses one with those of another network."""
    for recording in recordings:
        _emissions_path(folder, recording.id)
    field, hop = emissions.clock_of(model)
    about = _of_model(model) | {
        "values": "natural logarithms of probabilities [frames, symbols], float32",
        "symbols": list(model.vocabulary.symbols),
        **{"sample_rate": audio.SAMPLE_RATE, "hop_samples": hop, "receptive_field_samples": field},
    }
    outputs.claim(folder, about, name="emissions.json", what="emissions")


def _emissions_path(folder: Path, id_: str) -> Path:
    return outputs.inside(folder, f"{id_}.npy")


def _keep(array: np.ndarray, folder: Path, id_: str) -> None:
    path = _emissions_path(folder, id_)
    file = outputs.ArrayFile(path, shape=array.shape, dtype=np.dtype(np.float32))
    file.write(array)
    file.close()
