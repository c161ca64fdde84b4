"""Files of results: arrays, texts, what describes a folder, and skipped.tsv.

Everything is written under a temporary name, which no pattern such as *.npy matches, and renamed
when it is whole.
"""

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

from dinosr_jax import files
from dinosr_jax.errors import UserError
from dinosr_jax.inference.recordings import Chosen, printable


class Summary(NamedTuple):
    """What was done: recordings written now, there before, left out (name, reason)."""

    written: int
    there_before: int
    skipped: tuple[tuple[str, str], ...]


def remove_stale(folder: Path, *, where: Literal["tree", "folder"] = "tree") -> int:
    """Removes what killed processes of this machine left half-written; returns how many files."""
    prefix, removed = files.temporary_prefix(), 0
    for root, folders, names in os.walk(folder):
        if where == "folder":
            folders.clear()
        for name in names:
            owner = name.removeprefix(prefix).partition("-")[0]
            if name.startswith(prefix) and owner.isdecimal() and not _is_alive(int(owner)):
                Path(root, name).unlink(missing_ok=True)
                removed += 1
    return removed


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


class OutputError(UserError, RuntimeError):
    """Output cannot be written, or belongs to something else."""


def inside(folder: Path, id_: str) -> Path:
    """FOLDER/ID, for the id of a recording; raises OutputError where it leads out of the folder."""
    if ".." in Path(id_).parts or Path(id_).is_absolute():
        raise OutputError(f"{printable(id_)!r} would be written outside of {folder}")
    return folder / id_


@contextlib.contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A new binary file, which becomes `path` at the end, or is removed where that fails.

    Its folder is made if missing; `sync` is as of `files.replacing`. OutputError: it cannot be
    written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path, sync=sync) as file:
            yield file
    except OSError as error:
        raise failed(path, error) from error


def failed(path: Path, error: OSError) -> OutputError:
    """The error of a disk that is full, or a folder that cannot be written to."""
    folder = next(parent for parent in path.parents if parent.exists())
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    free = shutil.disk_usage(folder).free / 2**20
    what = f"the disk is full, {free:,.0f} MB free" if full else error.strerror or str(error)
    advice = "Free space" if full else "Check the folder and its permissions"
    return OutputError(
        f"cannot write into {printable(str(path.parent))} ({what}). Nothing half-written was left. "
        f"{advice}, and run the same command again to go on."
    )


class ArrayFile:
    """An .npy file [T, ...] that is written a part at a time, and is there when it is whole.

    It is not synced: call os.sync() once after many files. Methods raise OutputError where the disk
    is full or the folder cannot be written to; what was written is removed then.
    """

    def __init__(self, path: Path, *, shape: tuple[int, ...], dtype: np.dtype):
        self._dtype, self._opened = dtype, contextlib.ExitStack()
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
        with self._discarding():
            self._file = self._opened.enter_context(replacing(path, sync=False))
            np.lib.format.write_array_header_1_0(self._file, header | {"shape": shape})

    def write(self, array: np.ndarray) -> None:
        """Appends rows."""
        with self._discarding():
            self._file.write(memoryview(np.ascontiguousarray(array, self._dtype)).cast("B"))

    def close(self) -> None:
        """Gives the file its name."""
        self._opened.close()

    def discard(self) -> None:
        """Removes what was written."""
        with contextlib.suppress(OutputError), self._discarding():
            raise OutputError("discarded")

    @contextlib.contextmanager
    def _discarding(self) -> Iterator[None]:
        with contextlib.ExitStack() as failing:
            failing.push(self._opened)
            yield
            failing.pop_all()  # nothing failed: the file stays open


def is_whole(path: Path) -> bool:
    """Whether an .npy of `ArrayFile` is there, with all of its bytes: a power cut may take some."""
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            size = file.tell() + dtype.itemsize * math.prod(shape)
        return path.stat().st_size == size
    except (OSError, ValueError, EOFError):
        return False


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Writes a text file whole or not at all; `sync` as of `replacing`."""
    with replacing(path, sync=sync) as file:
        file.write(text.encode())


def claim(
    folder: Path,
    description: Mapping[str, Any],
    *,
    name: str = "features.json",
    what: str = "features",
) -> None:
    """Writes the description of a folder's arrays, or checks that it is that of those there.

    What killed processes left half-written in the folder is removed. OutputError: the folder holds
    other arrays; each field that differs is named.
    """
    path = folder / name
    plain = json.loads(json.dumps(description))
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        write_text(path, json.dumps(plain, indent=2) + "\n")
        return
    except ValueError as error:
        raise OutputError(f"{path} is damaged ({error}); choose another --output") from None
    lines = [
        f"  {name}: there {there.get(name)!r}, asked for {plain[name]!r}"
        for name in plain
        if name != "checkpoint" and there.get(name) != plain[name]
    ]
    if lines:
        raise OutputError(
            "\n".join([f"{path} belongs to other {what}:", *lines, "Choose another --output."])
        )
    remove_stale(folder)


def summary(written: int, there_before: int, chosen: Chosen, *, folder: Path) -> Summary:
    """What was done; writes the list of what was left out."""
    list_skipped(folder, chosen)
    return Summary(written, there_before, tuple(chosen.skipped.items()))


def list_skipped(folder: Path, chosen: Chosen) -> None:
    """Writes skipped.tsv, which every shard has for itself."""
    name = "skipped.tsv" if chosen.shard[1] == 1 else "skipped_{}_{}.tsv".format(*chosen.shard)
    write_skipped(folder, tuple(chosen.skipped.items()), name=name)


def write_skipped(folder: Path, rows: Sequence[tuple[str, str]], *, name: str) -> None:
    """Writes the files that were left out: file, tab, reason; removes the list where none was."""
    if not rows:
        (folder / name).unlink(missing_ok=True)
        return
    clean = lambda text: printable(text).replace("\t", " ").replace("\n", " ")
    lines = [f"{clean(file)}\t{clean(reason)}" for file, reason in rows]
    write_text(folder / name, "\n".join(["file\treason", *lines]) + "\n")
