"""Id, length, speaker, language and text of every record, and the records themselves.

The manifest of a dataset is made by one pass over its records, without decoding audio, and kept
beside them in `manifest.tsv`. It is made again when the files of the dataset change.
"""

import csv
import dataclasses
import functools
import hashlib
import io
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dinosr_jax.data.audio import SAMPLE_RATE

CACHE_NAME = "manifest.tsv"
_COLUMNS = ("id", "num_samples", "speaker", "language", "text")


class ManifestError(ValueError):
    """A prepared dataset cannot be read; the message says what was expected and what to do."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is known about N utterances, without their audio.

    Attributes:
      ids: [N] str, unique.
      num_samples: [N] int64, lengths at 16 kHz.
      speakers: [N] str.
      languages: [N] str, '' where unknown.
      texts: [N] str, '' where unknown.
      positions: [N] int64, where each utterance is in the `Records` of the same split.
    """

    ids: np.ndarray
    num_samples: np.ndarray
    speakers: np.ndarray
    languages: np.ndarray
    texts: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change when an id, a length or the order does."""
        digest = hashlib.sha256()
        for utterance_id, num_samples in zip(self.ids, self.num_samples, strict=True):
            digest.update(f"{len(utterance_id)}:{utterance_id}:{num_samples};".encode())
        return digest.hexdigest()[:16]

    def take(self, index: np.ndarray | slice) -> "Manifest":
        """Selects utterances by a mask, an array of indices or a slice."""
        return Manifest(*(getattr(self, f.name)[index] for f in dataclasses.fields(self)))

    def at_least(self, min_seconds: float) -> "Manifest":
        """Leaves out what is shorter than `min_seconds`."""
        return self.take(self.num_samples >= min_seconds * SAMPLE_RATE)


class Records:
    """The stored audio of a split, by position. Reads one record at a time, from any thread."""

    def __init__(self, data_dir: str | os.PathLike, *, dataset: str = "audio_folder", split: str):
        """Opens a split, at the cost of opening its files.

        Args:
          data_dir: folder that `prepare` wrote to.
          dataset: name of the dataset in it.
          split: in TFDS syntax, such as 'train[:95%]' or 'train+test'.

        Raises:
          ManifestError: as `load_manifest`.
        """
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        builder = _open(data_dir, dataset=dataset)
        instructions = _file_instructions(builder, split=split)
        self._source = ArrayRecordDataSource(instructions)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, position: int) -> tuple[bytes, str]:
        """Gives the bytes of the audio file and the id of one utterance.

        Raises:
          Exception: whatever array_record or protobuf raise when the record is damaged.
        """
        features = _features(self._source[int(position)])
        return features["speech"].bytes_list.value[0], _text(features, "id")


def load_manifest(
    data_dir: str | os.PathLike, *, dataset: str = "audio_folder", split: str
) -> Manifest:
    """Loads what is known about the utterances of a split.

    Args:
      data_dir: folder that `prepare` wrote to.
      dataset: name of the dataset in it: 'audio_folder', or one that TFDS prepared with
        file_format='array_record', such as 'librispeech/lazy_decode'.
      split: in TFDS syntax, such as 'train[:95%]' or 'train+test'.

    Returns:
      The manifest; utterance i is at position i of the `Records` of the same split.

    Raises:
      ManifestError: nothing was prepared in `data_dir`, or there is no such split, or it is empty.
    """
    builder = _open(data_dir, dataset=dataset)
    instructions = _file_instructions(builder, split=split)
    whole, first_of_file = _all_splits(builder)
    rows = np.concatenate(
        [
            first_of_file[Path(part.filename).name] + part.skip + np.arange(part.take)
            for part in instructions
        ]
    )
    return dataclasses.replace(whole.take(rows), positions=np.arange(len(rows)))


def dataset_folder(data_dir: str | os.PathLike, *, dataset: str = "audio_folder") -> Path | None:
    """Finds the newest complete version of a dataset, None if there is none."""
    versions = [
        path.parent
        for path in Path(data_dir).expanduser().glob(f"{dataset}/*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    ]
    return max(versions, key=lambda path: [int(n) for n in path.name.split(".")], default=None)


def split_names(data_dir: str | os.PathLike, *, dataset: str = "audio_folder") -> list[str]:
    """Names the splits of a dataset, sorted."""
    return sorted(_open(data_dir, dataset=dataset).info.splits)


def _open(data_dir: str | os.PathLike, *, dataset: str):
    """Opens a prepared dataset as a read-only TFDS builder."""
    import tensorflow_datasets as tfds

    folder = dataset_folder(data_dir, dataset=dataset)
    if folder is None:
        data_dir = Path(data_dir).expanduser()
        found = "there is no such folder"
        if data_dir.is_dir():
            found = f"it holds {sorted(os.listdir(data_dir))[:10]}"
        raise ManifestError(
            f"data_dir={data_dir}: no prepared dataset {dataset!r}; {found}. Prepare it with: "
            f"python -m dinosr_jax prepare --source=FOLDER_OF_AUDIO --data_dir={data_dir}"
        )
    builder = tfds.builder_from_directory(folder)
    if builder.info.file_format.value != "array_record":
        raise ManifestError(
            f"{folder}: its records are {builder.info.file_format.value} files, expected "
            "array_record, which can be read in any order. Prepare it again with "
            "file_format='array_record'."
        )
    return builder


def _file_instructions(builder, *, split: str) -> Sequence:
    """Which parts of which files make up a split expression."""
    try:
        instructions = builder.info.splits[split].file_instructions
    except (KeyError, ValueError, AssertionError, TypeError) as error:
        raise ManifestError(
            f"split {split!r} of {builder.data_dir}: {str(error).strip(chr(39))}. "
            f"Expected one of {sorted(builder.info.splits)}, a part such as 'train[:95%]', or "
            "several such as 'train+test'."
        ) from None
    if not sum(part.take for part in instructions):
        raise ManifestError(
            f"split {split!r} of {builder.data_dir}: holds no utterance. Choose a larger part."
        )
    return instructions


def _all_splits(builder) -> tuple[Manifest, dict[str, int]]:
    """The manifest of all splits together, and at which row each file of records starts."""
    folder = Path(builder.data_dir)
    names, first_of_file, num_rows = [], {}, 0
    for _, info in sorted(builder.info.splits.items()):
        for name, length in zip(sorted(info.filenames), info.shard_lengths, strict=True):
            names.append(name)
            first_of_file[name] = num_rows
            num_rows += length
    key = _state_of(folder)
    whole = _read_cache(folder / CACHE_NAME, key=key, num_rows=num_rows)
    if whole is None:
        whole = _scan([folder / name for name in names])
        _write_cache(folder / CACHE_NAME, whole, key=key)
    return whole, first_of_file


def _state_of(folder: Path) -> str:
    """Changes when a file of the dataset does."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(CACHE_NAME):
            stat = path.stat()
            digest.update(repr((path.name, stat.st_size, stat.st_mtime_ns)).encode())
    return digest.hexdigest()[:32]


def _scan(paths: Sequence[Path]) -> Manifest:
    """Reads every record once."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    rows = []
    for path in paths:
        source = ArrayRecordDataSource([path])
        for position in range(len(source)):
            features = _features(source[position])
            speaker = "speaker" if "speaker" in features else "speaker_id"
            rows.append(
                (
                    _text(features, "id"),
                    _num_samples(features),
                    _text(features, speaker),
                    _text(features, "language"),
                    _text(features, "text"),
                )
            )
    return _from_rows(rows)


def _features(record: bytes):
    """The named values of a serialised tf.train.Example."""
    import tensorflow as tf

    return tf.train.Example.FromString(record).features.feature


def _text(features, name: str) -> str:
    """A value as text, '' where the dataset has no such feature."""
    if name not in features:
        return ""
    value = features[name]
    if value.int64_list.value:
        return str(value.int64_list.value[0])
    return value.bytes_list.value[0].decode() if value.bytes_list.value else ""


def _num_samples(features) -> int:
    """The stored length, or what the header of the audio tells in datasets that do not store it."""
    if "num_samples" in features:
        return features["num_samples"].int64_list.value[0]
    import soundfile

    return soundfile.info(io.BytesIO(features["speech"].bytes_list.value[0])).frames


def _from_rows(rows: Sequence[tuple]) -> Manifest:
    ids, lengths, speakers, languages, texts = zip(*rows, strict=True)
    return Manifest(
        ids=np.array(ids, object),
        num_samples=np.array(lengths, np.int64),
        speakers=np.array(speakers, object),
        languages=np.array(languages, object),
        texts=np.array(texts, object),
        positions=np.arange(len(ids)),
    )


def _write_cache(path: Path, manifest: Manifest, *, key: str) -> None:
    """Writes the cache whole or not at all; does without in a folder that cannot be written."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with open(partial, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, "excel-tab")
            writer.writerow((*_COLUMNS, key))
            columns = (manifest.speakers, manifest.languages, manifest.texts)
            writer.writerows(zip(manifest.ids, manifest.num_samples, *columns, strict=True))
        partial.replace(path)
    except OSError as error:
        print(
            f"{path} could not be written ({error.strerror}): the records will be read again at "
            "the next start.",
            file=sys.stderr,
        )


def _read_cache(path: Path, *, key: str, num_rows: int) -> Manifest | None:
    """Reads the cache; None if there is none, or if it is damaged or of another state."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.reader(file, "excel-tab")
            if next(reader, None) != [*_COLUMNS, key]:
                return None
            rows = list(reader)
        manifest = _from_rows(rows)
    except (OSError, ValueError, csv.Error):
        return None
    return manifest if len(manifest) == num_rows else None
