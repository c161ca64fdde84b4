"""The recordings that a command is given: files, folders, fairseq manifests, prepared datasets."""

import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.data.sources import is_audio, unique_ids

_MANIFEST_ROW = re.compile(r"[^\t]+\t\d+\s*")


class Recording(NamedTuple):
    """One recording.

    `id` names what is written for it; `name` is what errors call it; `source` is a path, a
    function that reads the bytes of an audio file, or samples [S] float32 at 16 kHz; `num_samples`
    is the length at 16 kHz, where it is known.
    """

    id: str
    name: str
    source: Path | Callable[[], bytes] | np.ndarray
    num_samples: int | None = None

    def load(self, *, on_missing: Callable[[float], None] | None = None) -> np.ndarray:
        """Decodes it: [S] float32 at 16 kHz, checked; raises AudioError; as `audio.load`."""
        if isinstance(self.source, np.ndarray):
            audio.check(self.source, name=self.name)
            return self.source
        return audio.load(self.read(), name=self.name, on_missing=on_missing)

    def read(self) -> bytes | Path:
        """What `audio.decode` takes; raises AudioError where it is not an ordinary file."""
        if callable(self.source):
            return self.source()
        try:
            mode = os.stat(self.source).st_mode
        except OSError as error:
            raise audio.AudioError(
                f"{self.name}: cannot be read ({error.strerror}). Check the file, and where it "
                "leads if it is a link."
            ) from None
        if not stat.S_ISREG(mode):
            raise audio.AudioError(f"{self.name}: not an ordinary file (a pipe, socket or device)")
        return self.source


Bad = Callable[[Recording, str], None]


def printable(name: str) -> str:
    """The name, with the bytes that are no UTF-8 written as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def open_inputs(
    paths: str | Path | Sequence[str | Path], *, split: str = "", on_bad: Bad | None = None
) -> list[Recording]:
    """The recordings at some paths, in a fixed order: that of the paths, then by name.

    Args:
      paths: Audio files; folders of them, nested or not; fairseq manifests (a line with the root,
        then lines of path, tab, number of samples), known by their content; or, with `split`, the
        data_dir of prepared datasets.
      split: Split of the prepared dataset, in TFDS syntax.
      on_bad: Called with a recording that cannot be read, and the reason; None raises.

    Returns:
      Recordings; the id is the path relative to the folder or root without its extension (with
      it, where two differ in nothing else), the stem of a single file, or the id in the dataset.

    Raises:
      AudioError: There is nothing at a path, no audio in it, or two recordings have the same id.
      ManifestError: No such dataset or split.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else list(paths)
    on_bad = on_bad or refuse
    found: list[Recording] = []
    for path in map(Path, paths):
        if split:
            found += _records(path, split=split)
        elif path.is_dir():
            found += _folder(path, on_bad)
        elif (root := _manifest_root(path)) is not None:
            found += _manifest(path, root)
        elif os.path.lexists(path):
            found.append(Recording(path.name, printable(str(path)), path))
        else:
            raise audio.AudioError(f"{printable(str(path))}: no such file or folder")
    _check_unique(found)
    if split:
        return found
    ids = unique_ids([recording.id for recording in found])
    return [recording._replace(id=ids[recording.id]) for recording in found]


def refuse(recording: Recording, reason: str) -> None:
    """Raises AudioError: the first recording that cannot be used ends it."""
    del recording
    raise audio.AudioError(reason)


def _check_unique(found: Iterable[Recording]) -> None:
    names: dict[str, str] = {}
    for recording in found:
        if recording.id in names:
            raise audio.AudioError(
                f"{names[recording.id]} and {recording.name} would both be written as "
                f"{printable(recording.id)!r}; give the folder that holds both, or run them apart"
            )
        names[recording.id] = recording.name


def _folder(folder: Path, on_bad: Bad) -> list[Recording]:
    """The audio in a folder by its names; links are followed, every folder is entered once."""
    found, visited = [], set()

    def report(error: OSError) -> None:
        where = Path(error.filename)
        reason = f"{printable(str(where))}: cannot be listed ({error.strerror}). Check its "
        on_bad(Recording(where.name, printable(str(where)), where), reason + "permissions.")

    for root, folders, names in os.walk(folder, followlinks=True, onerror=report):
        real = os.path.realpath(root)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders.sort()
        for name in filter(is_audio, names):
            path = Path(root, name)
            found.append(Recording(path.relative_to(folder).as_posix(), printable(str(path)), path))
    if not found:
        raise audio.AudioError(
            f"{printable(str(folder))}: no audio file in this folder; for a prepared dataset, "
            "name its --split"
        )
    return sorted(found, key=lambda recording: recording.id)


def _manifest_root(path: Path) -> str | None:
    """First line of a fairseq manifest, or None for another file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        with path.open("rb") as file:
            lines = file.read(65_536).decode("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
    if len(lines) < 2 or "\0" in lines[0] or not _MANIFEST_ROW.fullmatch(lines[1]):
        return None
    return lines[0].rstrip("\r")


def _manifest(path: Path, root: str) -> list[Recording]:
    """The recordings of a fairseq manifest, in its order."""
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    found = []
    for number, line in enumerate(text.split("\n")[1:], start=2):
        if not line.strip():
            continue
        name = line.split("\t")[0]
        if not _MANIFEST_ROW.fullmatch(line):
            raise audio.AudioError(
                f"{printable(str(path))}, line {number}: expected path, tab, number of samples"
            )
        if ".." in Path(name).parts:
            raise audio.AudioError(
                f"{printable(str(path))}, line {number}: {printable(name)!r} leaves the root; "
                "expected paths below it"
            )
        where = path.parent / root / name  # absolute roots and names stay what they are
        found.append(Recording(name.lstrip("/"), printable(str(where)), where))
    return found


def _records(data_dir: Path, *, split: str) -> list[Recording]:
    from dinosr_jax.data import manifest as manifests  # needs tensorflow-datasets

    datasets = ("audio_folder", "librispeech/lazy_decode")
    found = [name for name in datasets if manifests.dataset_folder(data_dir, dataset=name)]
    where = {"dataset": (found or datasets)[0], "split": split}
    manifest = manifests.load_manifest(data_dir, **where)
    records = manifests.Records(data_dir, **where)

    def read(position: int, name: str) -> bytes:
        try:
            return records[position][0]
        except Exception as error:  # whatever array_record or protobuf raise
            raise audio.AudioError(f"{name}: the record is damaged ({error})") from None

    columns = (manifest.positions, manifest.ids, manifest.num_samples)
    return [
        Recording(str(name), str(name), partial(read, int(position), str(name)), int(length))
        for position, name, length in zip(*columns, strict=True)
    ]
