"""Checks every file of a source in parallel, and keeps the results in a journal.

A file that is 16 kHz mono is left as it is. A part of a file, another rate, several channels, and
what has no true length in its header are converted to 16 kHz mono FLAC. A killed run goes on with
the results in the journal.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dinosr_jax import files
from dinosr_jax.data import audio
from dinosr_jax.data.prepare.sources import INDEX_NAME, AudioFile, Source, SourceError
from dinosr_jax.data.threads import map_in_threads
from dinosr_jax.progress import progress_bar

MIN_SAMPLES = 400  # the receptive field of one frame
_JOURNAL_FORMAT = 2


class Verdict(NamedTuple):
    """The check of one file; all tuples have one entry an utterance."""

    reasons: tuple[str, ...]  # why it is left out, '' if it is not
    num_samples: tuple[int, ...]  # at 16 kHz
    # (first byte, number of bytes) in the converted file; None if the file's own bytes are stored
    spans: tuple[tuple[int, int], ...] | None
    missing_seconds: float = 0.0  # at the end of the file, by its header


def check_source(
    source: Source, *, work_dir: Path, num_workers: int | None = None
) -> dict[str, Verdict]:
    """Checks the files of a source that the journal does not know.

    The journal and the converted files are in `work_dir`. Returns path of the file -> verdict.

    Raises:
      SourceError: index.tsv asks for samples beyond the end of a file (the line is named).
    """
    journal_path = work_dir / "journal.jsonl"
    (work_dir / "converted").mkdir(parents=True, exist_ok=True)
    known = _read_journal(journal_path)
    verdicts, todo = {}, []
    for file in source.files:
        verdict = known.get(_key(file))
        if verdict and (verdict.spans is None or _converted(work_dir, file=file).exists()):
            verdicts[file.path] = verdict
        else:
            todo.append(file)
    if verdicts and todo:
        print(f"{len(verdicts)} of {len(source.files)} files were checked before: going on.")
    if not todo:
        return verdicts

    def check(file: AudioFile) -> Verdict:
        converted = _converted(work_dir, file=file)
        return _check_file(file, folder=source.folder, converted=converted)

    bar = {"total": len(source.files), "initial": len(verdicts), "unit": "file", "desc": "check"}
    with open(journal_path, "a", encoding="utf-8") as journal, progress_bar(**bar) as bar:
        journal.write("\n")  # the last line of a killed run may be cut off
        for file, verdict in zip(todo, map_in_threads(check, todo, num_workers), strict=True):
            verdicts[file.path] = verdict
            journal.write(json.dumps([_JOURNAL_FORMAT, _key(file), *verdict]) + "\n")
            journal.flush()
            bar.update()
    return verdicts


def stored_bytes(
    file: AudioFile, *, verdict: Verdict, folder: Path, work_dir: Path
) -> Iterator[bytes | None]:
    """Yields what is stored of each utterance of a file, None for those that are left out.

    Raises:
      SourceError: the file has changed since it was checked.
    """
    if verdict.spans is None and any(verdict.reasons):
        yield from [None] * len(verdict.reasons)
        return
    if verdict.spans is None:
        content = (folder / file.path).read_bytes()
        if len(content) != file.num_bytes:
            raise SourceError(
                f"{folder / file.path}: has {len(content)} bytes, {file.num_bytes} when it was "
                "listed: it changed meanwhile. Run the same command again."
            )
        yield content
        return
    content = _converted(work_dir, file=file).read_bytes()
    for reason, (first, size) in zip(verdict.reasons, verdict.spans, strict=True):
        yield None if reason else content[first : first + size]


def _converted(work_dir: Path, *, file: AudioFile) -> Path:
    """Path of the converted utterances of a file, until the records are written."""
    return work_dir / "converted" / hashlib.sha256(_key(file).encode()).hexdigest()[:32]


def _key(file: AudioFile) -> str:
    """What a verdict depends on: the file as it is on disk, and its segments."""
    segments = [utterance.segment for utterance in file.utterances]
    digest = hashlib.sha256(repr(segments).encode()).hexdigest()[:16]
    return f"{file.path}|{file.num_bytes}|{file.mtime_ns}|{digest}"


def _check_file(file: AudioFile, *, folder: Path, converted: Path) -> Verdict:
    """Decodes a file as a whole, checks its utterances, and converts them where that is needed."""
    num_utterances = len(file.utterances)
    try:
        decoded = audio.decode(folder / file.path, name=file.path)
    except audio.AudioError as error:
        return Verdict((_reason(error, file.path),) * num_utterances, (0,) * num_utterances, None)
    reasons, lengths, flacs = [], [], []
    waveform, sample_rate, channels, missing, has_true_header = decoded
    as_is = file.utterances[0].segment is None and (sample_rate, channels) == (16_000, 1)
    as_is = as_is and has_true_header and not missing
    for utterance in file.utterances:
        part, segment = waveform, utterance.segment
        if segment is not None:
            end = segment.start_sample + segment.num_samples
            if end > len(waveform) + missing:
                above = (folder / file.path).parents  # of several folders, each has its own
                index = next(up / INDEX_NAME for up in above if (up / INDEX_NAME).exists())
                raise SourceError(
                    f"{index}, line {segment.line}: ends at sample {end} of "
                    f"{file.path}, which has {len(waveform)}. Correct start_sample or num_samples."
                )
            part = waveform[segment.start_sample : end]
        reason, flac, num_samples = "", b"", -(-len(part) * audio.SAMPLE_RATE // sample_rate)
        try:
            audio.check(part, name=utterance.id)
            if num_samples < MIN_SAMPLES:
                reason = f"too short: {num_samples} samples at 16 kHz, a frame needs {MIN_SAMPLES}"
            elif not as_is:
                with audio.explained(file.path):
                    part = audio.to_16khz(np.ascontiguousarray(part), sample_rate=sample_rate)
                    flac, num_samples = audio.encode_flac(part), len(part)
        except audio.AudioError as error:
            reason = _reason(error, utterance.id)
        reasons.append(reason)
        lengths.append(num_samples)
        flacs.append(flac)
    if as_is:
        return Verdict(tuple(reasons), tuple(lengths), None)
    with files.replacing(converted, sync=False) as file:
        file.write(b"".join(flacs))
    sizes = list(map(len, flacs))
    spans = tuple(zip(itertools.accumulate(sizes[:-1], initial=0), sizes, strict=True))
    return Verdict(tuple(reasons), tuple(lengths), spans, missing / sample_rate)


def _reason(error: audio.AudioError, name: str) -> str:
    return str(error).removeprefix(f"{name}: ")


def _read_journal(path: Path) -> dict[str, Verdict]:
    """Reads the verdicts of earlier runs; a line that a kill cut off is passed over."""
    known = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            try:
                journal_format, key, reasons, num_samples, spans, missing = json.loads(line)
            except ValueError:
                continue
            if journal_format == _JOURNAL_FORMAT:
                spans = spans and tuple((first, size) for first, size in spans)
                known[key] = Verdict(tuple(reasons), tuple(num_samples), spans, missing)
    return known
