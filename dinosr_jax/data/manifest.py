"""Id, length, speaker, language and text of every record, and the records themselves.

The manifest of a split is made by one pass over its records, without decoding audio, and kept
beside them in `manifest_SPLIT.tsv`. It is made again when the files of the split change.
"""

import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from dinosr_jax import files
from dinosr_jax.data.audio import SAMPLE_RATE
from dinosr_jax.data.decoder import AudioError, opened
from dinosr_jax.data.threads import map_in_threads
from dinosr_jax.errors import UserError
from dinosr_jax.progress import progress_bar

DATASETS = ("audio_folder", "librispeech/lazy_decode")  # that `prepare` makes
CACHE_NAME = "manifest_{split}.tsv"
_CHUNK_RECORDS = 64  # read at a time
_COLUMNS = ("id", "num_samples", "speaker", "language", "text")


class ManifestError(UserError):
    """A prepared dataset cannot be read; the message says what was expected and what to do."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is known about N utterances, without their audio."""

    ids: np.ndarray  # [N] str, unique
    num_samples: np.ndarray  # [N] int64, lengths at 16 kHz
    speakers: np.ndarray  # [N] str
    languages: np.ndarray  # [N] str, '' where unknown
    texts: np.ndarray  # [N] str, '' where unknown
    positions: np.ndarray  # [N] int64, in the `Records` of the same split

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
        """Opens the files of a split; arguments and errors as of `load_manifest`."""
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        builder = _open(data_dir, dataset=dataset)
        instructions = _file_instructions(builder, split=split)
        self._source = ArrayRecordDataSource(instructions)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, position: int) -> tuple[bytes, str]:
        """The audio file's bytes, and the id, of one utterance; damaged records raise any error."""
        features = _features(self._source[int(position)])
        return features["speech"].bytes_list.value[0], _text(features, "id")


def load_manifest(
    data_dir: str | os.PathLike, *, dataset: str = "audio_folder", split: str
) -> Manifest:
    """The manifest of a split; utterance i is at position i of the `Records` of the same split.

    Args:
      data_dir: folder that `prepare` wrote to.
      dataset: name of the dataset in it: 'audio_folder', or one that TFDS prepared with
        file_format='array_record', such as 'librispeech/lazy_decode'.
      split: in TFDS syntax, such as 'train[:95%]' or 'train+test'.

    Raises:
      ManifestError: nothing was prepared in `data_dir`, or there is no such split, or it is empty.
    """
    builder = _open(data_dir, dataset=dataset)
    instructions = _file_instructions(builder, split=split)
    used = {Path(part.filename).name for part in instructions}
    wholes, first_of_file, num_rows = [], {}, 0
    for name, info in sorted(builder.info.splits.items()):
        names = sorted(info.filenames)
        if used.isdisjoint(names):
            continue
        for file_name, length in zip(names, info.shard_lengths, strict=True):
            first_of_file[file_name] = num_rows
            num_rows += length
        paths = [Path(builder.data_dir) / file_name for file_name in names]
        wholes.append(_of_split(paths, split=name, num_rows=info.num_examples))
    rows = np.concatenate(
        [
            first_of_file[Path(part.filename).name] + part.skip + np.arange(part.take)
            for part in instructions
        ]
    )
    return dataclasses.replace(join_manifests(wholes).take(rows), positions=np.arange(len(rows)))


def dataset_folder(data_dir: str | os.PathLike, *, dataset: str = "audio_folder") -> Path | None:
    """Folder of the newest complete version of a dataset; None if there is none."""
    versions = [
        path.parent
        for path in Path(data_dir).expanduser().glob(f"{dataset}/*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
    ]
    return max(versions, key=lambda path: [int(n) for n in path.name.split(".")], default=None)


def dataset_in(data_dir: str | os.PathLike) -> str:
    """The prepared dataset in a folder: own recordings, or LibriSpeech; the first if none is."""
    there = (name for name in DATASETS if dataset_folder(data_dir, dataset=name))
    return next(there, DATASETS[0])


def split_names(data_dir: str | os.PathLike, *, dataset: str = "audio_folder") -> list[str]:
    """Names the splits of a dataset, sorted."""
    return sorted(_open(data_dir, dataset=dataset).info.splits)


def check_split(data_dir: str | os.PathLike, *, dataset: str, split: str) -> None:
    """Raises ManifestError as `load_manifest`, without reading any record."""
    _file_instructions(_open(data_dir, dataset=dataset), split=split)


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """Keeps TFDS from warning of its own deprecations, and of audio that it would decode slowly."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _open(data_dir: str | os.PathLike, *, dataset: str):
    """Opens a prepared dataset as a read-only TFDS builder."""
    import tensorflow_datasets as tfds

    folder = dataset_folder(data_dir, dataset=dataset)
    if folder is None:
        data_dir = Path(data_dir).expanduser()
        there = "there is no such folder"
        if data_dir.is_dir():
            there = f"it holds {sorted(os.listdir(data_dir))[:10]}"
        raise ManifestError(
            f"data_dir={data_dir}: no prepared dataset {dataset!r}; {there}. "
            f"{_how_to_prepare(data_dir, dataset=dataset)}"
        )
    with quiet_tfds():
        builder = tfds.builder_from_directory(folder)
    file_format = builder.info.file_format.value
    stored_type = builder.info.features.get_serialized_info()["speech"].np_dtype
    if file_format != "array_record":
        raise ManifestError(
            f"{folder}: its records are {file_format} files, expected array_record, which can be "
            f"read in any order. {_how_to_convert(folder)}"
        )
    if stored_type not in (object, np.bytes_, np.str_):
        raise ManifestError(
            f"{folder}: stores decoded samples, expected the bytes of audio files, which are "
            f"several times smaller. {_how_to_convert(folder)}"
        )
    return builder


def _how_to_prepare(data_dir: Path, *, dataset: str, splits: Sequence[str] = ()) -> str:
    """The command that makes a dataset that is not there, or splits of it."""
    if not dataset.startswith("librispeech"):
        return (
            "Prepare it with: python -m dinosr_jax prepare --source=FOLDER_OF_AUDIO "
            f"--data_dir={data_dir}"
        )
    earlier = sorted(data_dir.glob("librispeech/*/*/dataset_info.json"))
    if earlier and not splits:
        return _how_to_convert(earlier[-1].parent)
    chosen = f" --split={','.join(splits)}" if splits else ""
    return (
        "Prepare it with: python -m dinosr_jax prepare --dataset=librispeech "
        f"--data_dir={data_dir}{chosen} (--archives=FOLDER takes archives that you have)"
    )


def _how_to_convert(folder: Path) -> str:
    """The command that converts a dataset that TFDS prepared in another way."""
    if "librispeech" not in folder.parts:
        return "Prepare it again with file_format='array_record'."
    data_dir = folder.parents[2]
    if folder.parent.name == "lazy_decode":  # its place is taken
        data_dir = data_dir.with_name(f"{data_dir.name}_array_record")
    return (
        f"Convert it with: python -m dinosr_jax prepare --dataset=librispeech --source={folder} "
        f"--data_dir={data_dir}, and read data_dir={data_dir}, dataset='librispeech/lazy_decode'."
    )


def _file_instructions(builder, *, split: str) -> Sequence:
    """Which parts of which files make up a split expression."""
    try:
        instructions = builder.info.splits[split].file_instructions
    except (KeyError, ValueError, AssertionError, TypeError) as error:
        known = sorted(builder.info.splits)
        message = (
            f"split {split!r} of {builder.data_dir}: {str(error).strip(chr(39))}. "
            f"Expected one of {known}, a part such as 'train[:95%]', or several such as "
            "'train+test'."
        )
        if builder.name == "librispeech":
            named = [re.split(r"[\[(]", part)[0].strip() for part in split.split("+")]
            others = [name for name in named if name and name not in known]
            data_dir = Path(builder.data_dir).parents[2]
            message += f" {_how_to_prepare(data_dir, dataset=builder.name, splits=others)}"
        raise ManifestError(message) from None
    if not sum(part.take for part in instructions):
        has = ", ".join(f"{s.num_examples} in {name}" for name, s in builder.info.splits.items())
        raise ManifestError(
            f"split {split!r} of {builder.data_dir}: holds no utterance; the dataset has {has}. "
            "Choose a larger part, such as 'train[80%:]'."
        )
    return instructions


def _of_split(paths: Sequence[Path], *, split: str, num_rows: int) -> Manifest:
    """The manifest of a split, from the cache or from its records."""
    digest = hashlib.sha256()  # of the state of the files
    for path in paths:
        stat = path.stat()
        digest.update(repr((path.name, stat.st_size, stat.st_mtime_ns)).encode())
    key = digest.hexdigest()[:32]
    cache = paths[0].parent / CACHE_NAME.format(split=split)
    whole = _read_cache(cache, key=key, num_rows=num_rows)
    if whole is None:
        whole = _scan(paths, split=split)
        _write_cache(cache, whole, key=key)
    return whole


def join_manifests(parts: Sequence[Manifest]) -> Manifest:
    """One manifest after the other."""
    names = [field.name for field in dataclasses.fields(Manifest)]
    return Manifest(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _scan(paths: Sequence[Path], *, split: str) -> Manifest:
    """Reads every record once, in threads."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    source = ArrayRecordDataSource(paths)
    starts = range(0, len(source), _CHUNK_RECORDS)

    def read(start: int) -> list[tuple]:
        positions = range(start, min(start + _CHUNK_RECORDS, len(source)))
        return [_row(record) for record in source.__getitems__(positions)]

    rows: list[tuple] = []
    with progress_bar(total=len(source), unit="utterance", desc=f"list {split}", delay=2) as bar:
        for part in map_in_threads(read, starts, None):
            rows += part
            bar.update(len(part))
    if num_bad := sum(row[1] == 0 for row in rows):
        print(
            f"{split}: {num_bad} of {len(rows)} recordings have no readable header and are not "
            "used. Prepare the dataset again to see which and why.",
            file=sys.stderr,
        )
    return _from_rows(rows)


def _row(record: bytes) -> tuple:
    """What is known about one utterance, in the order of the columns."""
    features = _features(record)
    names = ("speaker" if "speaker" in features else "speaker_id", "language", "text")
    others = (_text(features, name) for name in names)
    return _text(features, "id"), _num_samples(features), *others


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
    """The stored length, else that of the audio; 0 if that is damaged."""
    if "num_samples" in features:
        return features["num_samples"].int64_list.value[0]
    try:
        with opened(features["speech"].bytes_list.value[0], name="") as sound:
            return sound.num_samples or sum(map(len, sound.blocks(2**20, dtype="float32")))
    except AudioError:
        return 0


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
    text = io.StringIO(newline="")
    columns = (manifest.num_samples, manifest.speakers, manifest.languages, manifest.texts)
    rows = [(*_COLUMNS, key), *zip(manifest.ids, *columns, strict=True)]
    csv.writer(text, "excel-tab").writerows(rows)
    try:
        files.replace_text(path, text.getvalue())
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
