"""LibriSpeech's archives as OpenSLR gives them: found, verified and unpacked.

Lines of transcripts that TFDS cannot read (without a text, of a missing recording, ...) are taken
out, and listed with the reason.
"""

import gzip
import hashlib
import json
import re
import shutil
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from dinosr_jax.data.prepare.sources import SourceError
from dinosr_jax.progress import progress_bar

ROOT = "LibriSpeech"
METADATA = ("SPEAKERS.TXT", "CHAPTERS.TXT")
_LEFT_OUT_NAME = "left_out.json"
_LINE = re.compile(r"(\d{1,18}-\d{1,18}-[\w-]+) +(\S.*)", re.ASCII)
_DRAIN_BYTES = 1 << 20


class Archive(NamedTuple):
    """An archive and its subset ('dev-clean'); the rest is what TFDS has recorded of OpenSLR's."""

    path: Path
    subset: str
    url: str
    num_bytes: int
    sha256: str


def find_archives(folder: Path, *, names: Sequence[str]) -> list[Path]:
    """Paths of archives by their names, such as 'dev-clean.tar.gz', in a folder or below it.

    Raises:
      SourceError: no such folder, or some are not there: all of them are named.
    """
    folder = folder.expanduser().resolve()
    if not folder.is_dir():
        there = "a file" if folder.exists() else "nothing"
        raise SourceError(
            f"--archives={folder}: expected a folder of OpenSLR's archives, found {there}."
        )
    present = {path.name: path for path in sorted(folder.rglob("*.tar.gz"), reverse=True)}
    if missing := [name for name in names if name not in present]:
        raise SourceError(
            f"--archives={folder}: {', '.join(missing)} is not there; found "
            f"{', '.join(sorted(present)) or 'no *.tar.gz'}. Download what is missing from "
            "https://www.openslr.org/12, or name the splits that you have with --split, such as "
            "--split=train_clean100,dev_clean."
        )
    return [present[name] for name in names]


def unpack(archive: Archive, *, to: Path) -> list[tuple[str, str]]:
    """Unpacks an archive; the folder appears by one rename, complete and checked.

    A folder that exists is left as it is. The content is verified, or the size noted if it is not
    OpenSLR's. Returns (path, reason) of utterances that were taken out.

    Raises:
      SourceError: the archive is truncated, corrupt or not what its name says.
    """
    if not to.exists():
        size = archive.path.stat().st_size
        if size != archive.num_bytes:
            print(
                f"note: {archive.path} has {size:,} bytes, OpenSLR's has {archive.num_bytes:,}: "
                "it is another one, and taken as it is."
            )
        partial = to.with_name(f"{to.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _extract(archive, to=partial)
        _check_layout(archive, folder=partial)
        left_out = _clean_transcripts(partial)
        (partial / _LEFT_OUT_NAME).write_text(json.dumps(left_out))
        partial.rename(to)
    return [(path, reason) for path, reason in json.loads((to / _LEFT_OUT_NAME).read_text())]


class _Watched:
    """A file that hashes what is read of it, and shows how much."""

    def __init__(self, file: IO[bytes], bar: Any):
        self._file, self._bar, self.sha256 = file, bar, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self.sha256.update(content)
        self._bar.update(len(content))
        return content


def _extract(archive: Archive, *, to: Path) -> None:
    """Writes the files under LibriSpeech/; links, devices and paths that lead out are ignored."""
    size = archive.path.stat().st_size
    bar = progress_bar(total=size, unit="B", unit_scale=True, desc=f"unpack {archive.path.name}")
    try:
        with bar, open(archive.path, "rb") as file:
            watched = _Watched(file, bar)
            # tarfile alone would take a truncated archive for a whole one: gzip knows its end.
            with gzip.open(watched) as content:
                with tarfile.open(fileobj=content, mode="r|") as members:
                    for member in members:
                        parts = PurePosixPath(member.name).parts
                        if member.isfile() and parts[:1] == (ROOT,) and ".." not in parts:
                            # extract(filter=...) is not in every Python 3.11
                            path = to.joinpath(*parts)
                            path.parent.mkdir(parents=True, exist_ok=True)
                            with members.extractfile(member) as source, path.open("wb") as target:
                                shutil.copyfileobj(source, target)
                while content.read(_DRAIN_BYTES):
                    pass
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError) as error:
        raise SourceError(
            f"{archive.path}: truncated or corrupt ({str(error).rstrip('.')}): it has {size:,} "
            f"bytes, OpenSLR's has {archive.num_bytes:,}. Download it again: {archive.url}"
        ) from None
    sha256 = watched.sha256.hexdigest()
    if size == archive.num_bytes and sha256 != archive.sha256:
        raise SourceError(
            f"{archive.path}: has the size of OpenSLR's archive but another content (sha256 "
            f"{sha256}, expected {archive.sha256}). Download it again: {archive.url}"
        )


def _check_layout(archive: Archive, *, folder: Path) -> None:
    """Refuses an archive that does not hold the subset of its name and the two tables."""
    root = folder / ROOT
    names = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    other = [name for name in names if (root / name).is_dir() and name != archive.subset]
    missing = [name for name in (archive.subset, *METADATA) if name not in names]
    if missing or other:
        raise SourceError(
            f"{archive.path}: holds {names or 'nothing'} in {ROOT}/, expected {archive.subset}, "
            f"{' and '.join(METADATA)}, as in OpenSLR's archive: {archive.url}"
        )


def _clean_transcripts(folder: Path) -> list[tuple[str, str]]:
    """Takes out of the transcripts what cannot be read; (path or line, reason) of each."""
    left_out, listed = [], set()
    root = folder / ROOT
    for path in sorted(root.glob("*/*/*/*.txt")):  # the files that TFDS takes for transcripts
        lines, kept = path.read_bytes().split(b"\n"), []
        for number, line in enumerate(lines, start=1):
            name, reason = _check_line(line, folder=path.parent)
            where = (path.parent / f"{name}.flac").relative_to(root).as_posix()
            if not name:
                where = f"{path.relative_to(root).as_posix()}, line {number}"
            elif not reason and name in listed:
                reason = f"{name} is listed again"
            if reason:
                left_out.append((where, reason))
            elif name:
                listed.add(name)
                kept.append(line.strip())
        if kept != lines:
            path.write_bytes(b"".join(line + b"\n" for line in kept))
    reported = {where for where, _ in left_out}
    for path in sorted(root.rglob("*.flac")):
        where = path.relative_to(root).as_posix()
        if path.stem not in listed and where not in reported:
            left_out.append((where, "no *.trans.txt beside it has a line for it"))
    return left_out


def _check_line(line: bytes, *, folder: Path) -> tuple[str, str]:
    """The id in a line of a transcript, and why it cannot be used; both '' for a blank line."""
    if not line.strip():
        return "", ""
    try:
        match = _LINE.fullmatch(line.decode("utf-8").strip())
    except UnicodeDecodeError:
        return "", "not valid UTF-8"
    if not match:
        return "", "not an id such as 84-121123-0000 and a text"
    name = match[1]
    if not (folder / f"{name}.flac").is_file():
        return name, "the recording is missing"
    return name, ""
