"""The recordings that a command is given: a file, a folder, or a split of a prepared dataset."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.data.sources import find_files, is_audio, unique_ids


class Recording(NamedTuple):
    """One recording: its id, and how to read it ([S] float32 at 16 kHz; raises AudioError)."""

    id: str
    load: Callable[[], np.ndarray]


def open_inputs(path: str | Path, *, split: str = "") -> list[Recording]:
    """The recordings at a path, in a fixed order.

    Args:
      path: An audio file; a folder of them, nested or not; or, with `split`, the data_dir of a
        prepared dataset.
      split: Split of the prepared dataset, in TFDS syntax.

    Returns:
      Recordings; the id is the path relative to the folder without its extension (with it, where
      two files differ in nothing else), or the id in the dataset.

    Raises:
      AudioError: There is nothing at the path, or no audio in it.
      SourceError: A folder cannot be listed.
      ManifestError: No such dataset or split.
    """
    path = Path(path)
    if split:
        return list(_records(path, split=split))
    if path.is_file():
        return [Recording(path.stem, partial(audio.load, path, name=str(path)))]
    if not path.is_dir():
        raise audio.AudioError(f"{path}: no such file or folder")
    files = sorted(name for name in find_files(path) if is_audio(name))
    if not files:
        raise audio.AudioError(
            f"{path}: no audio file in this folder; for a prepared dataset, name its --split"
        )
    return [
        Recording(id_, partial(audio.load, path / name, name=str(path / name)))
        for name, id_ in unique_ids(files).items()
    ]


def _records(data_dir: Path, *, split: str) -> Iterator[Recording]:
    from dinosr_jax.data import manifest as manifests  # needs tensorflow-datasets

    datasets = ("audio_folder", "librispeech/lazy_decode")
    found = [name for name in datasets if manifests.dataset_folder(data_dir, dataset=name)]
    where = {"dataset": (found or datasets)[0], "split": split}
    manifest = manifests.load_manifest(data_dir, **where)
    records = manifests.Records(data_dir, **where)

    def load(position: int, name: str) -> np.ndarray:
        return audio.load(records[position][0], name=name)

    for position, name in zip(manifest.positions, manifest.ids, strict=True):
        yield Recording(str(name), partial(load, int(position), str(name)))
