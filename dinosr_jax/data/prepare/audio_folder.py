"""Prepares a folder of audio: checks it, and writes it as records that can be read in any order.

    python -m dinosr_jax prepare --source=FOLDER --data_dir=DIR

writes the TFDS dataset `DIR/audio_folder/1.0.0`, with the features of TFDS' own
`librispeech/lazy_decode` and more. `DIR/preparation` holds the journal of the check, with which a
killed run goes on. The dataset appears by one rename, complete.
"""

import contextlib
import csv
import io
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from dinosr_jax import files
from dinosr_jax.data import audio
from dinosr_jax.data.manifest import dataset_folder, load_manifest, quiet_tfds, split_names
from dinosr_jax.data.prepare.checking import Verdict, check_source, stored_bytes
from dinosr_jax.data.prepare.combining import named, read_sources
from dinosr_jax.data.prepare.source_phones import carry_phones
from dinosr_jax.data.prepare.sources import Source, SourceError, Utterance
from dinosr_jax.data.threads import map_in_threads
from dinosr_jax.progress import progress_bar

_NUM_SHOWN = 20
SKIPPED_NAME = "skipped.tsv"
MISSING_NAME = "missing_ends.tsv"
SOURCE_NAME = "source.json"

Encoding = Literal["original", "pcm16"]


class _Checked(NamedTuple):
    """A checked source, the folder of converted files, the encoding, and threads that decode."""

    source: Source
    verdicts: Mapping[str, Verdict]
    work_dir: Path
    encoding: Encoding = "original"
    num_workers: int | None = None


class AudioFolder(tfds.core.GeneratorBasedBuilder):
    """Any folder of audio as a TFDS dataset of array_record files.

    `speech` is the audio file's own bytes if it is whole and 16 kHz mono, else 16-bit FLAC; with
    encoding 'pcm16' it is 16-bit samples in WAV. `audio.decode` decodes it.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    code_path = None  # where TFDS would look for checksums of downloads: there are none

    def __init__(self, *, checked: _Checked | None = None, **kwargs):
        """Makes a builder of what is `checked`; None reads what is written."""
        self._checked = checked
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        speech = tfds.features.Audio(
            sample_rate=audio.SAMPLE_RATE, dtype=np.int16, lazy_decode=True, file_format="flac"
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description="Utterances of a folder of audio, 16 kHz mono.",
            features=tfds.features.FeaturesDict(
                {
                    "speech": speech,
                    "text": tfds.features.Text(),
                    "speaker_id": np.int64,
                    "id": np.str_,
                    "speaker": np.str_,
                    "language": np.str_,
                    "num_samples": np.int64,
                    "sample_rate": np.int64,
                }
            ),
            supervised_keys=("speech", "text"),
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator[tuple[str, dict]]]:
        del dl_manager  # nothing is downloaded
        source = self._checked.source
        skipped = _skipped(self._checked)
        # In TFDS' temporary folder: they appear together with the records.
        write_skipped(Path(self.data_path), skipped)
        _write_missing(Path(self.data_path), self._checked)
        origin = {
            "folder": named(source),
            "fingerprint": source.fingerprint,
            "encoding": self._checked.encoding,
        }
        (self.data_path / SOURCE_NAME).write_text(json.dumps(origin, indent=1))
        splits = sorted({utterance.split for utterance, _ in _usable(self._checked)})
        return {split: self._generate_examples(split) for split in splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        speaker_ids = _speaker_ids(self._checked.source)
        names = ("id", "text", "speaker", "language")
        for utterance, num_samples, content in _contents(self._checked, split=split):
            example = {name: getattr(utterance, name) for name in names}
            example |= {"speech": io.BytesIO(content), "num_samples": num_samples}
            example |= {"speaker_id": speaker_ids[utterance.speaker]}
            yield utterance.id, example | {"sample_rate": audio.SAMPLE_RATE}


def _contents(checked: _Checked, *, split: str) -> Iterator[tuple[Utterance, int, bytes]]:
    """Yields (utterance, number of samples, what is stored) of a split."""
    source, verdicts, work_dir, encoding, num_workers = checked

    def read() -> Iterator[tuple[Utterance, int, bytes]]:
        for file in progress_bar(source.files, unit="file", desc=f"write {split}"):
            if all(utterance.split != split for utterance in file.utterances):
                continue
            verdict = verdicts[file.path]
            parts = stored_bytes(file, verdict=verdict, folder=source.folder, work_dir=work_dir)
            for row in zip(file.utterances, verdict.num_samples, parts, strict=True):
                if row[2] is not None and row[0].split == split:
                    yield row

    def to_samples(row: tuple[Utterance, int, bytes]) -> tuple[Utterance, int, bytes]:
        utterance, num_samples, content = row
        samples = audio.decode(content, name=utterance.id).waveform
        return utterance, num_samples, audio.encode_pcm16(samples)

    return read() if encoding == "original" else map_in_threads(to_samples, read(), num_workers)


def prepare(
    *sources: str | os.PathLike,
    data_dir: str | os.PathLike,
    exclude: Sequence[str] = (),
    encoding: Encoding = "original",
    num_workers: int | None = None,
) -> Path:
    """Prepares folders of audio for training. Goes on where a killed run stopped.

    Args:
      *sources: folders of audio of the kinds in `sources`.
      data_dir: where to write; made if missing.
      exclude: what to leave out, as of `read_sources`.
      encoding: 'original' stores 16 kHz mono files as they are; 'pcm16' samples, which are twice
        the bytes of FLAC and need no decoding.
      num_workers: threads that check files; None for one a core.

    Returns:
      The folder of the dataset.

    Raises:
      SourceError: there is no usable audio, a table is malformed, `data_dir` cannot be written,
        holds the dataset of another source, or is in use by another run.
    """
    contents = read_sources(sources, exclude=exclude)
    data_dir = Path(data_dir).expanduser().resolve()
    work_dir = data_dir / "preparation"
    with locked(work_dir):
        for note in contents.notes:
            print(f"note: {note}")
        if not _is_up_to_date(contents, data_dir=data_dir, encoding=encoding):
            with disk_errors(data_dir):
                verdicts = check_source(contents, work_dir=work_dir, num_workers=num_workers)
                checked = _Checked(contents, verdicts, work_dir, encoding, num_workers)
                _write(checked, data_dir=data_dir)
        folder = dataset_folder(data_dir)
        with disk_errors(data_dir):
            carry_phones(contents, folder=folder)
        for finished in ("converted", "build"):
            shutil.rmtree(work_dir / finished, ignore_errors=True)
        print(summary(folder, data_dir=data_dir, dataset=AudioFolder.name))
    return folder


def _usable(checked: _Checked) -> Iterator[tuple]:
    """Yields (utterance, whether it was converted) of what is written."""
    for file in checked.source.files:
        verdict = checked.verdicts[file.path]
        for utterance, reason in zip(file.utterances, verdict.reasons, strict=True):
            if not reason:
                yield utterance, verdict.spans is not None


def _write_missing(folder: Path, checked: _Checked) -> None:
    """Lists the files that are kept though their headers claim more, if there are any."""
    verdicts = [(file.path, checked.verdicts[file.path]) for file in checked.source.files]
    rows = [(p, v.missing_seconds) for p, v in verdicts if v.missing_seconds and not all(v.reasons)]
    if rows:
        _write_table(folder / MISSING_NAME, [("file", "missing_seconds"), *rows])


def _skipped(checked: _Checked) -> list[tuple[str, str]]:
    """(path, or id where a file holds several utterances; reason) of what is left out."""
    skipped = list(checked.source.left_out)
    for file in checked.source.files:
        reasons = checked.verdicts[file.path].reasons
        for utterance, reason in zip(file.utterances, reasons, strict=True):
            if reason:
                skipped.append((utterance.id if utterance.segment else file.path, reason))
    return sorted(skipped)


def _speaker_ids(source: Source) -> dict[str, int]:
    """Speakers as numbers: their own where all are numbers, as in LibriSpeech, else their rank."""
    speakers = sorted({u.speaker for file in source.files for u in file.utterances})
    if all(s.isascii() and s.isdecimal() and len(s) < 19 for s in speakers):
        return {speaker: int(speaker) for speaker in speakers}
    return {speaker: rank for rank, speaker in enumerate(speakers)}


@contextlib.contextmanager
def locked(work_dir: Path) -> Iterator[None]:
    """Holds the working folder for this process; the lock goes with the process."""
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        lock = files.open_lock(work_dir / "lock")
    except OSError as error:
        raise SourceError(
            f"--data_dir={work_dir.parent}: cannot be written ({error.strerror}). "
            "Choose a folder that you may write to."
        ) from None
    with lock:
        try:
            files.lock(lock.fileno(), name=work_dir.parent)
        except BlockingIOError:
            raise SourceError(
                f"--data_dir={work_dir.parent}: another run is preparing it. "
                "Wait for it, or choose another folder."
            ) from None
        yield


@contextlib.contextmanager
def disk_errors(data_dir: Path) -> Iterator[None]:
    """Raises SourceError for OSError and what array_record makes of it: advice for a bad disk."""
    try:
        yield
    except OSError as error:
        where, what, cause = error.filename or data_dir, error.strerror or error, error
    except RuntimeError as error:  # array_record's
        if "write() failed: " not in str(error):
            raise
        where, what, cause = data_dir, str(error).split("write() failed: ")[1].split(";")[0], error
    else:
        return
    raise SourceError(
        f"{where}: {what}. Check the disk, its free space and the permissions, then run the same "
        "command again: it goes on where it stopped."
    ) from cause


def _is_up_to_date(source: Source, *, data_dir: Path, encoding: Encoding) -> bool:
    """Whether what is written is this source as it is now, stored in this way.

    Raises:
      SourceError: the dataset there was made from another folder.
    """
    folder = dataset_folder(data_dir)
    if folder is None:
        return False
    try:
        origin = json.loads((folder / SOURCE_NAME).read_text())
    except (OSError, ValueError):
        origin = {"folder": "an unknown folder", "fingerprint": ""}
    same_encoding = origin.get("encoding", "original") == encoding
    if origin["fingerprint"] == source.fingerprint and same_encoding:
        print(f"{folder} is complete and {named(source)} has not changed: nothing to do.")
        return True
    if origin["folder"] != named(source):
        raise SourceError(
            f"--data_dir={data_dir}: holds a dataset made from {origin['folder']}, not from "
            f"{named(source)}. Choose another --data_dir, or delete {folder}."
        )
    if same_encoding:
        print(f"{named(source)} has changed since {folder} was written: writing it again.")
    else:
        print(f"{folder} has another encoding than {encoding}: writing it again.")
    return False


def _write(checked: _Checked, *, data_dir: Path) -> None:
    """Writes the records in a folder of their own, then moves it into place."""
    converted = [was_converted for _, was_converted in _usable(checked)]
    if not converted:
        message = nothing_usable(_skipped(checked))
        raise SourceError(f"--source={named(checked.source)}: {message}")
    build_dir = checked.work_dir / "build"
    shutil.rmtree(build_dir, ignore_errors=True)  # what a killed run left
    builder = AudioFolder(checked=checked, data_dir=build_dir)
    build_quietly(builder)
    folder = data_dir / Path(builder.data_dir).relative_to(build_dir)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists():
        folder.rename(build_dir / "old")
    Path(builder.data_dir).rename(folder)
    if any(converted) and checked.encoding == "original":
        print(
            f"{sum(converted)} utterances were cut, mixed down or resampled, or had no true length "
            "in their header, and are stored as 16 kHz mono FLAC (16 bits); the others are stored "
            "as they are."
        )


def build_quietly(builder: tfds.core.DatasetBuilder) -> None:
    """Writes a dataset without TFDS' announcement of a download of unknown size."""
    tfds.disable_progress_bar()
    with quiet_tfds(), contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()


def write_skipped(folder: Path, skipped: Sequence[tuple[str, str]]) -> None:
    """Writes (file or utterance, reason) of what is left out beside the records."""
    _write_table(folder / SKIPPED_NAME, [("file", "reason"), *skipped])


def read_skipped(folder: Path) -> list[tuple[str, str]]:
    """Reads what is left out; nothing where TFDS itself wrote the dataset."""
    return _read_table(folder / SKIPPED_NAME)


def _write_table(path: Path, rows: Sequence[tuple]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, "excel-tab").writerows(rows)


def _read_table(path: Path) -> list[tuple[str, str]]:
    """Rows below the header; none where there is no such file."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return [(name, value) for name, value in list(csv.reader(file, "excel-tab"))[1:]]


def nothing_usable(skipped: Sequence[tuple[str, str]]) -> str:
    """The message that all utterances are left out, with (file or utterance, reason) of each."""
    examples = "; ".join(f"{path}: {reason}" for path, reason in skipped[:3])
    return f"none of its {len(skipped)} utterances can be used. The first: {examples}"


def summary(folder: Path, *, data_dir: Path, dataset: str) -> str:
    """What was written, what was left out, and what to type next."""
    lines = []
    skipped = read_skipped(folder)
    if skipped:
        lines.append(f"{len(skipped)} left out (all of them in {folder / SKIPPED_NAME}):")
        lines += [f"  {path}: {reason}" for path, reason in skipped[:_NUM_SHOWN]]
        if len(skipped) > _NUM_SHOWN:
            lines.append(f"  ... and {len(skipped) - _NUM_SHOWN} more")
    if missing := [float(seconds) for _, seconds in _read_table(folder / MISSING_NAME)]:
        lines.append(f"{audio.missing_note(missing)} (all of them in {folder / MISSING_NAME})")
    speakers: set[str] = set()
    total_utterances, total_hours = 0, 0.0
    for split in split_names(data_dir, dataset=dataset):
        manifest = load_manifest(data_dir, dataset=dataset, split=split)
        hours = manifest.num_samples.sum() / audio.SAMPLE_RATE / 3600
        own = set(manifest.speakers)
        about = f"{len(manifest)} utterances, {hours:.2f} hours, {len(own)} speakers"
        lines.append(f"  {split}: {about}")
        speakers |= own
        total_utterances += len(manifest)
        total_hours += hours
    lines.append(
        f"{folder}: {total_utterances} utterances, {total_hours:.2f} hours, {len(speakers)} "
        f"speakers, {len(skipped)} left out"
    )
    config = "configs/base.py" if dataset.startswith("librispeech") else "configs/..."
    lines.append(f"next: python main.py --config={config} --config.data.data_dir={data_dir}")
    return "\n".join(lines)
