"""Text of many recordings: emissions computed in batches, decoded meanwhile, written as JSON lines.

Finished lines are kept in a file beside the output until all are there; a run that was stopped goes
on with the others.

Shapes: T frames, V symbols.
"""

import collections
import concurrent.futures
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.inference import batches, outputs
from dinosr_jax.inference.decoding import Decoder, Hypothesis
from dinosr_jax.inference.emissions import check_recogniser, emissions
from dinosr_jax.inference.extract import Summary, of_shard, parse_shard, skipped_name
from dinosr_jax.inference.inputs import Recording, open_inputs, refuse
from dinosr_jax.inference.unit_files import Key, label, paths_of


def decode_all(
    found: Iterable[tuple[Recording, np.ndarray]], decoder: Decoder, *, num_workers: int | None
) -> Iterator[tuple[Recording, np.ndarray, Hypothesis]]:
    """Decodes emissions in threads while the next are computed; in the order of `found`."""
    workers = num_workers or os.cpu_count() or 1
    waiting: collections.deque = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for recording, array in found:
            waiting.append((recording, array, pool.submit(decoder, array)))
            while len(waiting) > 2 * workers or (waiting and waiting[0][2].done()):
                first = waiting.popleft()
                yield first[0], first[1], first[2].result()
        for recording, array, future in waiting:
            yield recording, array, future.result()


def transcribe_files(
    model: Any,
    inputs: Sequence[str | Path],
    *,
    output: Path,
    decoder: Decoder,
    settings: Mapping[str, Any],
    key: Key = "file",
    emissions_folder: Path | None = None,
    split: str = "",
    shard: str = "0/1",
    bad: Literal["raise", "skip"] = "raise",
    options: batches.Options | None = None,
    progress: Callable[[float, float], None] = lambda done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> Summary:
    """Writes what is said in recordings: a JSON object a line, in the order of the input.

    Args:
      model: A recogniser (`load`).
      inputs: As `open_inputs`.
      output: JSON lines; OUTPUT's stem with .about.json beside it says how they were made.
      decoder: From emissions to text.
      settings: Of the decoder, for .about.json: a run that goes on must have the same.
      key: Field of the utterance's name, as of units.
      emissions_folder: Where to keep the emissions [T, V] as .npy; None for nowhere.
      split: Of a prepared dataset.
      shard: 'i/n': only part i (from 0) of n of the recordings.
      bad: 'raise' at the first recording that cannot be used, or 'skip' and list it.
      options: Batches, chunks and threads.
      progress: As `batches.run`.
      say: Called with what the user should know.

    Raises:
      ValueError: The network was not fine-tuned.
      AudioError: A recording cannot be used, where they are not to be skipped; or two have the
        same name.
      OutputError: It cannot be written, or is of another network or other settings.
    """
    check_recogniser(model)
    parts = parse_shard(shard)
    (output,) = paths_of(output, layers=(0,), shard=parts)
    if output.is_dir():
        raise outputs.OutputError(f"{output} is a folder; expected a file, such as hyp.jsonl")
    skipped: list[tuple[str, str]] = []
    on_bad = refuse if bad == "raise" else lambda r, reason: skipped.append((r.name, reason))
    recordings = of_shard(open_inputs(inputs, split=split, on_bad=on_bad), parts)
    names = _names(recordings, key)
    about = {"checkpoint": model.path, "fingerprint": model.fingerprint, "step": model.step}
    about |= {"key": key, **settings}
    outputs.claim(output.parent, about, name=f"{output.stem}.about.json")
    kept = _Kept(output, key)
    todo = [r for r in recordings if not _is_done(r, names, kept, emissions_folder)]
    if before := len(recordings) - len(todo):
        say(f"{before} of {len(recordings)} are there already")
    how = {"on_bad": on_bad, "options": options, "progress": progress, "say": say}
    workers = None if options is None else options.num_workers
    found = decode_all(emissions(model, todo, **how), decoder, num_workers=workers)
    _write(found, kept, names, emissions_folder)
    return _finish(kept, [names[r.id] for r in recordings], before, skipped, skipped_name(parts))


def _write(found: Iterable, kept: "_Kept", names: dict[str, str], folder: Path | None) -> None:
    with kept:
        for recording, array, hypothesis in found:
            if folder is not None:
                _keep(array, folder, recording.id)
            kept.add(names[recording.id], hypothesis)


def _finish(
    kept: "_Kept", names: Sequence[str], before: int, skipped: list, skipped_file: str
) -> Summary:
    """Writes the output and what was left out; `before` lines were there."""
    done = len(kept.lines.keys() & set(names))
    kept.finish(names)
    outputs.write_skipped(kept.folder, skipped, name=skipped_file)
    return Summary(done - before, before, tuple(skipped))


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


def _is_done(recording: Recording, names: dict, kept: "_Kept", folder: Path | None) -> bool:
    there = folder is None or _emissions_path(folder, recording.id).exists()
    return names[recording.id] in kept.lines and there


def _emissions_path(folder: Path, id_: str) -> Path:
    if ".." in Path(id_).parts or Path(id_).is_absolute():
        raise outputs.OutputError(f"{id_!r} would be written outside of {folder}")
    return folder / f"{id_}.npy"


def _keep(array: np.ndarray, folder: Path, id_: str) -> None:
    path = _emissions_path(folder, id_)
    file = outputs.ArrayFile(path, shape=array.shape, dtype=np.dtype(np.float32))
    file.write(array)
    file.close()


class _Kept:
    """Finished lines, by name: those of the output, and of a run that was stopped."""

    def __init__(self, output: Path, key: Key):
        self._output, self._key, self.folder = output, key, output.parent
        self._partial = output.with_name(f".{output.name}.partial")
        self.lines: dict[str, str] = {}
        for path in (output, self._partial):
            if path.exists():
                self._read(path)
        self._file: Any = None

    def _read(self, path: Path) -> None:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            try:
                name = json.loads(line)[self._key]
            except (ValueError, KeyError, TypeError):
                continue  # what a kill left of a line
            if line.endswith("\n"):
                self.lines[name] = line

    def __enter__(self) -> "_Kept":
        # what is read is written anew: a line that a kill cut short must not be appended to
        self._open()
        return self

    def _open(self) -> None:
        with outputs.replacing(self._partial) as temporary:
            temporary.write_text("".join(self.lines.values()), encoding="utf-8")
        self._file = self._partial.open("a", encoding="utf-8")

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, name: str, hypothesis: Hypothesis) -> None:
        """Keeps the line of an utterance, on disk."""
        words = [word._asdict() for word in hypothesis.words]
        line = {self._key: name, "text": hypothesis.text, "words": words}
        text = json.dumps(line | {"score": round(hypothesis.score, 4)}, ensure_ascii=False) + "\n"
        try:
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            raise outputs.failed(self._partial, error) from error
        self.lines[name] = text

    def finish(self, names: Sequence[str]) -> None:
        """Writes the output, in order, and removes what was kept beside it."""
        text = "".join(self.lines[name] for name in names if name in self.lines)
        outputs.write_text(self._output, text)
        self._partial.unlink(missing_ok=True)
