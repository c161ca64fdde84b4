"""Files of this machine: paths, locks, and files that are written whole or not at all."""

import contextlib
import errno
import fcntl
import logging
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

LOCAL = "a path on this machine: copy the files first, or mount the bucket"
_LOG = logging.getLogger(__name__)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # one slash: a Path has joined the two
# EBADF: NFS locks what is open for writing only, and a folder never is.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF)


def is_url(path: str | os.PathLike) -> bool:
    """Whether a path is a URL, such as gs://bucket/run: only this machine's files are read."""
    return _URL.match(os.fspath(path)) is not None


def refuse_url(name: str, path: str | os.PathLike) -> None:
    """Refuses a URL where a path is expected.

    Args:
      name: Of the option or argument, for the message.
      path: What was given for it.

    Raises:
      ValueError: It is a URL.
    """
    if is_url(path):
        raise ValueError(f"{name}: found the URL {os.fspath(path)}, expected {LOCAL}")


def lock(file: int, *, name: str | os.PathLike) -> bool:
    """Locks an open file or folder for this process, until its descriptor is closed.

    Args:
      file: Its descriptor.
      name: What is locked, for the warning.

    Returns:
      Whether it is locked; False, after a warning, where the file system has no locks.

    Raises:
      BlockingIOError: Another process has locked it.
      OSError: The lock failed otherwise.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _LOG.warning(
            "%s: its file system has no locks (%s): nothing keeps a second process from writing "
            "there at the same time; see to it that there is none",
            name,
            error.strerror,
        )
        return False
    return True


def open_lock(path: Path) -> BinaryIO:
    """Opens a file to be locked, made if missing; what it holds stays, and links are refused.

    Raises:
      OSError: It cannot be opened.
    """
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+b")


def walk(folder: Path, on_error: Callable[[OSError], None]) -> Iterator[Path]:
    """The paths in a folder that are no folders; links are followed, once each.

    Args:
      folder: Where to begin.
      on_error: Is given the error of a folder that cannot be listed.

    Yields:
      Paths that begin with `folder`.
    """
    visited = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=on_error):
        real = os.path.realpath(root)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders.sort()
        yield from (Path(root, name) for name in sorted(names))


def temporary_prefix() -> str:
    """How names of temporary files of this machine start; the number of the process follows."""
    return f".dinosr-{socket.gethostname()}-"


def temporary_path(folder: Path) -> Path:
    """A name in a folder that nobody can foresee; to be opened with mode "xb" or by `replacing`."""
    return folder / f"{temporary_prefix()}{os.getpid()}-{secrets.token_hex(8)}.tmp"


@contextlib.contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A new binary file, which becomes `path` at the end, or is removed where that fails.

    Args:
      path: Its folder must be there.
      sync: Have it on disk before it gets its name: after a power cut `path` is the new file or
        the old one. Without, a kill does no harm, and a power cut may.

    Raises:
      OSError: It cannot be written.
    """
    temporary = temporary_path(path.parent)
    # "x" fails where there is something, also a link that somebody has put there
    file = temporary.open("xb")
    try:
        yield file
        if sync:
            file.flush()
            os.fsync(file.fileno())
        file.close()
        temporary.replace(path)
        if sync:
            sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            file.close()
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all, also where power fails.

    Raises:
      OSError: It cannot be written.
    """
    with replacing(path) as file:
        file.write(text.encode())


def sync_folder(folder: Path) -> None:
    """Has the names of a folder's files on disk, on file systems that can do so."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Has all files of a folder on disk.

    Raises:
      OSError: One of them cannot be written.
    """
    for root, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(root, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(root))
