"""Speech Commands as TensorFlow Datasets prepares it: clips of a second, in 12 classes."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dinosr_jax.data.manifest import ManifestError, quiet_tfds

NAME = "speech_commands"
SPLITS = ("train", "validation", "test")


class Clip(NamedTuple):
    """A clip at 16 kHz: `samples` [S] int16, and the name of its class."""

    id: str
    samples: np.ndarray
    label: str


def prepared_folder(data_dir: str | Path) -> Path | None:
    """Folder in which TFDS has prepared the dataset: itself, or its newest version below."""
    data_dir = Path(data_dir).expanduser()
    if (data_dir / "dataset_info.json").is_file():
        return data_dir
    of_version = sorted(data_dir.glob(f"{NAME}/*/dataset_info.json"))
    return of_version[-1].parent if of_version else None


def read_clips(folder: Path, *, split: str) -> Iterator[Clip]:
    """Yields the clips of a split in the order of the records; ids are the split and the place.

    Args:
      folder: Of `prepared_folder`, in any file format of TFDS.
      split: One of `SPLITS`.

    Raises:
      ManifestError: It is another dataset, or lacks the split.
    """
    import tensorflow_datasets as tfds

    with quiet_tfds():
        builder = tfds.builder_from_directory(folder)
        if builder.name != NAME or split not in builder.info.splits:
            raise ManifestError(
                f"{folder}: found the dataset {builder.name!r} with the splits "
                f"{sorted(builder.info.splits)}, expected {NAME!r} with {', '.join(SPLITS)}"
            )
        labels = builder.info.features["label"].names
        if builder.info.file_format.value == "array_record":
            examples = builder.as_data_source(split=split)
        else:
            examples = tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False))
        for place, example in enumerate(examples):
            samples = np.asarray(example["audio"]).astype(np.int16)
            yield Clip(f"{split}/{place:06d}", samples, labels[int(example["label"])])
