"""The recordings that a command is given: files, folders, fairseq manifests, prepared datasets."""

import codecs
import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from dinosr_jax.data import audio
from dinosr_jax.data.prepare.sources import is_audio, unique_ids
from dinosr_jax.data.text_files import TextError, on_disk, read_text
from dinosr_jax.errors import UserError
from dinosr_jax.files import walk

T = TypeVar("T")
_NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")  # control characters
_EXPECTED = (
    "expected a list of recordings: their folder in the first line, then a path below it, tab, "
    "number of samples a line (the number may be missing)"
)


class Recording(NamedTuple):
    """One recording.

    `id` names what is written for it; `name` is for messages; `source` is a path, a function that
    reads the bytes of an audio file, or samples [S] float32 at 16 kHz; `num_samples` is the length
    at 16 kHz, where it is known.
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
      paths: Audio files; folders of them, nested or not; fairseq manifests (`read_manifest`), as
        which every text file is read; or, with `split`, the data_dir of prepared datasets.
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
    recordings: list[Recording] = []
    for path in map(Path, paths):
        if split:
            recordings += _records(path, split=split)
        elif path.is_dir():
            recordings += _folder(path, on_bad)
        elif _is_list(path):
            recordings += _manifest(path)
        elif os.path.lexists(path):
            recordings.append(Recording(path.name, printable(str(path)), path))
        else:
            raise audio.AudioError(f"{printable(str(path))}: no such file or folder")
    _check_unique(recordings)
    if split:
        return recordings
    ids = unique_ids([recording.id for recording in recordings])
    return [recording._replace(id=ids[recording.id]) for recording in recordings]


class Chosen:
    """The recordings that a command is to use, and those that it leaves out.

    `recordings` are part i of n of the input; `shard` is (i, n); `skipped` has the reasons for
    those that were left out, by name. The first that is bad raises AudioError, if `bad` is 'raise'.
    """

    def __init__(
        self,
        inputs: str | Path | Sequence[str | Path],
        *,
        split: str,
        shard: str,
        bad: Literal["raise", "skip"],
    ):
        self.shard, self._bad = parse_shard(shard), bad
        self.skipped: dict[str, str] = {}
        everything = open_inputs(inputs, split=split, on_bad=self.on_bad)
        self.recordings = of_shard(everything, self.shard)

    def on_bad(self, recording: Recording, reason: str) -> None:
        """Leaves a recording out, or raises AudioError."""
        if self._bad == "raise":
            refuse(recording, reason)
        self.skipped.setdefault(recording.name, reason)


def parse_shard(text: str) -> tuple[int, int]:
    """'i/n', with i from 0 to n - 1, as numbers."""
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise UserError(f"shard: found {text!r}, expected i/n with i from 0 to n - 1, such as 0/4")
    return int(first), int(second)


def of_shard(recordings: Sequence[T], shard: tuple[int, int]) -> list[T]:
    """The recordings of part i of n: neighbours, in order; the same cuts as fairseq's scripts."""
    i, n = shard
    size = len(recordings) / n
    return list(recordings[round(size * i) : round(size * (i + 1))])


def refuse(recording: Recording, reason: str) -> None:
    """Raises AudioError: the first recording that cannot be used ends it."""
    del recording
    raise audio.AudioError(reason)


def _check_unique(recordings: Iterable[Recording]) -> None:
    names: dict[str, str] = {}
    for recording in recordings:
        if recording.id in names:
            raise audio.AudioError(
                f"{names[recording.id]} and {recording.name} would both be written as "
                f"{printable(recording.id)!r}; give the folder that holds both, or run them apart"
            )
        names[recording.id] = recording.name


def _folder(folder: Path, on_bad: Bad) -> list[Recording]:
    """The audio in a folder by its names; links are followed, every folder is entered once."""

    def report(error: OSError) -> None:
        where = Path(error.filename)
        reason = f"{printable(str(where))}: cannot be listed ({error.strerror}). Check its "
        on_bad(Recording(where.name, printable(str(where)), where), reason + "permissions.")

    recordings = [
        Recording(path.relative_to(folder).as_posix(), printable(str(path)), path)
        for path in walk(folder, report)
        if is_audio(path.name)
    ]
    if not recordings:
        raise audio.AudioError(
            f"{printable(str(folder))}: no audio file in this folder; for a prepared dataset, "
            "name its --split"
        )
    return sorted(recordings, key=lambda recording: recording.id)


def _is_list(path: Path) -> bool:
    """Whether a file is text, by its first bytes; what is named as audio is not."""
    try:
        if is_audio(path.name) or not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with path.open("rb") as file:
            start = file.read(65_536)
    except OSError:
        return False
    wide = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return wide or not _NO_TEXT.search(start)


def read_manifest(path: Path) -> tuple[Path, list[tuple[int, str]]]:
    """Reads fairseq's list of recordings.

    Args:
      path: Text: the folder of the recordings, then their paths below it, one a line, with a tab
        and the number of samples or without. Empty lines are passed over.

    Returns:
      The folder, relative to that of the list where it is not absolute; and line number and path
      of every recording.

    Raises:
      AudioError: It is another text; the line is named.
    """
    where = printable(str(path))
    try:
        text = read_text(path, letters="as written", not_utf8="keep")
    except TextError as error:
        raise audio.AudioError(f"{printable(str(error))}; {_EXPECTED}") from None
    (first, root), *rows = [(n, t) for n, t in enumerate(text.split("\n"), 1) if t.strip()]
    if "\t" in root or root.lstrip().startswith(("{", "[")):
        wrong = f"found {printable(root[:60])!r} in place of a folder"
        raise audio.AudioError(f"{where}, line {first}: {wrong}; {_EXPECTED}")
    if not rows:
        raise audio.AudioError(f"{where}: found no line below line {first}; {_EXPECTED}")
    names = []
    for number, line in rows:
        name, *counts = line.split("\t")
        if len(counts) > 1 or not all(re.fullmatch(r"\d+\s*", count) for count in counts):
            raise audio.AudioError(
                f"{where}, line {number}: found {printable(line[:80])!r}; {_EXPECTED}"
            )
        if ".." in Path(name).parts:
            raise audio.AudioError(
                f"{where}, line {number}: {printable(name)!r} leaves the root; expected paths "
                "below it"
            )
        names.append((number, name))
    return path.parent / root, names


def _manifest(path: Path) -> list[Recording]:
    """The recordings of a manifest, in its order; what is not there fails when it is read."""
    root, rows = read_manifest(path)
    recordings = []
    for number, name in rows:
        source = on_disk(root / name)  # absolute names stay what they are
        where = printable(str(source))
        if not os.path.lexists(source):
            message = f"{printable(str(path))}, line {number}: no file {where}; {_EXPECTED}"
            source = partial(refuse, None, message)
        recordings.append(Recording(name.lstrip("/"), where, source))
    return recordings


def _records(data_dir: Path, *, split: str) -> list[Recording]:
    from dinosr_jax.data import manifest as manifests  # needs tensorflow-datasets

    where = {"dataset": manifests.dataset_in(data_dir), "split": split}
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
