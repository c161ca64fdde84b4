"""Reads what a source folder holds: audio files, tables, speakers, ids. Decodes nothing.

Three kinds of folders are understood:
- any folder of audio files, nested or not; the parent folder names the speaker;
- one like LibriSpeech: speaker/chapter/speaker-chapter-number.flac beside *.trans.txt files; of
  Libri-Light's limited sets, the folders are the splits (`librilight`);
- one with an `index.tsv` that cuts long files into utterances, as data/embedded has; `shard`,
  `file`, `start_sample` and `num_samples` are its columns.
A `transcripts.tsv` at the root, with a column `file`, describes the first two. Both tables may
have the columns `speaker`, `language`, `split` and `text`.
"""

import collections
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from dinosr_jax.data.prepare.librilight import limited_splits
from dinosr_jax.data.text_files import TextError, nfc, read_text
from dinosr_jax.errors import UserError
from dinosr_jax.files import walk

AUDIO_EXTENSIONS = frozenset(
    ".flac .wav .ogg .oga .opus .mp3 .aif .aiff .aifc .au .snd .caf .w64 .rf64".split()
)
INDEX_NAME = "index.tsv"
TABLE_NAME = "transcripts.tsv"
_INDEX_REQUIRED = ("shard", "file", "start_sample", "num_samples")
_TABLE_REQUIRED = ("file",)
_OPTIONAL = ("text", "speaker", "language", "split")
DEFAULT_SPLIT = "train"
_NUM_NAMED = 3  # of what fits nothing
_SPLIT_NAME = re.compile(r"\w[\w-]*", re.ASCII)


class SourceError(UserError):
    """A source folder cannot be used; the message says where, what was expected, what to do."""


class Segment(NamedTuple):
    """A part of a file, in samples at the file's own rate; `line` of index.tsv."""

    start_sample: int
    num_samples: int
    line: int


class Utterance(NamedTuple):
    """One utterance of the source: where it is, and what is known about it."""

    id: str
    segment: Segment | None
    speaker: str
    language: str
    text: str
    split: str


class AudioFile(NamedTuple):
    """One audio file: path relative to the source (posix), size in bytes, time of last change."""

    path: str
    num_bytes: int
    mtime_ns: int
    utterances: tuple[Utterance, ...]


class Source(NamedTuple):
    """A source folder: its files with their utterances."""

    folder: Path
    files: tuple[AudioFile, ...]
    left_out: tuple[tuple[str, str], ...]  # (path, reason)
    notes: tuple[str, ...]  # sentences to print
    fingerprint: str  # changes with paths, sizes, times and tables
    parts: Mapping[str, "Source"] = MappingProxyType({})  # several folders, by name


def read_source(folder: str | os.PathLike) -> Source:
    """Lists the utterances of a folder of audio; files are sorted by path.

    Raises:
      SourceError: no such folder, no audio in it, or a malformed table (the line is named).
    """
    folder = Path(folder).expanduser().resolve()
    if not folder.is_dir():
        there = "a file" if folder.exists() else "nothing"
        raise SourceError(
            f"--source={folder}: expected a folder of audio, found {there}. Check the path."
        )
    paths = find_files(folder)
    audio = {path: stat for path, stat in paths.items() if is_audio(path)}
    if not audio:
        raise SourceError(_no_audio_message(folder, paths))
    if INDEX_NAME in paths:
        per_file, left_out, notes = _read_index(folder, audio)
    else:
        per_file, left_out, notes = _read_plain(folder, audio, paths)
    files = tuple(
        AudioFile(path, audio[path].st_size, audio[path].st_mtime_ns, tuple(utterances))
        for path, utterances in sorted(per_file.items())
    )
    digest = hashlib.sha256()
    for path, stat in sorted(paths.items()):
        if path in audio or path.endswith((INDEX_NAME, TABLE_NAME, ".trans.txt")):
            digest.update(repr((path, stat.st_size, stat.st_mtime_ns)).encode())
    return Source(folder, files, tuple(left_out), tuple(notes), digest.hexdigest())


def find_files(folder: Path) -> dict[str, os.stat_result]:
    """All files under a folder by relative posix path; links are followed, once each."""

    def refuse(error: OSError) -> None:
        raise SourceError(
            f"{error.filename}: cannot be listed ({error.strerror}). Check its permissions."
        )

    paths = filter(Path.is_file, walk(folder, refuse))
    return {path.relative_to(folder).as_posix(): path.stat() for path in paths}


def is_audio(path: str) -> bool:
    """Whether the name of a file is that of a recording, by its extension."""
    return os.path.splitext(path)[1].lower() in AUDIO_EXTENSIONS


def _no_audio_message(folder: Path, paths: Iterable[str]) -> str:
    """Says what a folder without audio holds instead."""
    extensions = (os.path.splitext(path)[1].lower() for path in paths)
    kinds = collections.Counter(extension or "no extension" for extension in extensions)
    held = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "no file at all"
    return (
        f"--source={folder}: no audio found; it holds {held}. Expected files that end in "
        f"{' '.join(sorted(AUDIO_EXTENSIONS))}. Check the path, or convert the audio to FLAC "
        "(ffmpeg -i in.m4a -ar 16000 -ac 1 out.flac)."
    )


def _read_plain(folder: Path, audio: dict, paths: dict) -> tuple[dict, list, list]:
    """One utterance a file, described by transcripts.tsv or *.trans.txt where there are any."""
    left_out, notes = [], []
    for path in list(audio):
        try:
            path.encode()
        except UnicodeEncodeError:
            left_out.append((ascii(path), "its name is not valid UTF-8; rename it"))
            del audio[path]
    ids = unique_ids(audio)
    texts = _read_trans_texts(folder, audio, paths, notes)
    table: dict[str, dict[str, str]] = {}
    columns: list[str] = []
    if TABLE_NAME in paths:
        table, columns = _read_table(folder, audio)
        notes += _unknown_columns(TABLE_NAME, columns, known=(*_TABLE_REQUIRED, *_OPTIONAL))
    limited = limited_splits(audio) or {}
    if limited:
        notes.append(f"Libri-Light's limited sets: {', '.join(sorted(set(limited.values())))}")
    per_file = {}
    for path in audio:
        row = table.get(path, {})
        if "split" in columns and not row:
            left_out.append((path, f"not listed in {TABLE_NAME}, which assigns the splits"))
            continue
        per_file[path] = [
            Utterance(
                id=ids[path],
                segment=None,
                speaker=row.get("speaker") or _speaker(path, folder=folder),
                language=row.get("language", ""),
                text=row.get("text") or texts.get(path, ""),
                split=row.get("split", limited.get(path, DEFAULT_SPLIT)),
            )
        ]
    if "text" in columns or any(path.endswith(".trans.txt") for path in paths):
        notes.append(_num_transcripts(per_file))
    return per_file, left_out, notes


def _num_transcripts(per_file: dict[str, list[Utterance]]) -> str:
    """How many utterances have a transcript."""
    texts = [utterance.text for some in per_file.values() for utterance in some]
    return f"{sum(map(bool, texts))} of {len(texts)} utterances have a transcript."


def _unknown_columns(name: str, columns: list[str], *, known: tuple[str, ...]) -> list[str]:
    """A note of the columns that are not used."""
    if not (unknown := sorted(set(columns) - set(known))):
        return []
    return [f"{name}: columns {unknown} are not used; known are {', '.join(known)}."]


def _by_name(audio: Iterable[str]) -> dict[str, list[str]]:
    """Audio files by path, and by path without extension; letters and accents joined."""
    by_name = collections.defaultdict(list)
    for path in audio:
        for name in {nfc(path), nfc(os.path.splitext(path)[0])}:
            by_name[name].append(path)
    return by_name


def _read_table(folder: Path, audio: dict) -> tuple[dict, list[str]]:
    """Reads transcripts.tsv: rows by audio path, and its columns."""
    rows, lines = {}, {}
    by_name = _by_name(audio)
    columns: list[str] = []
    for where, row in _tsv_rows(folder / TABLE_NAME, required=_TABLE_REQUIRED):
        columns = list(row)
        name = Path(row["file"]).as_posix()
        candidates = [path for path in by_name.get(name, []) if nfc(path) == name]
        candidates = candidates or by_name.get(name, [])
        if len(candidates) != 1:
            problem = f"is {len(candidates)} files: {candidates}" if candidates else "is not there"
            raise SourceError(
                f"{where}: file {row['file']!r} {problem}. Expected the path of one audio file "
                f"relative to {folder}, with or without extension."
            )
        path = candidates[0]
        if path in rows:
            raise SourceError(f"{where}: {path!r} is listed again, first on line {lines[path]}.")
        if "split" in row:
            _check_split(row["split"], where=where)
        rows[path], lines[path] = row, where.rsplit(" ", 1)[-1]
    return rows, columns


def _read_index(folder: Path, audio: dict) -> tuple[dict, list, list]:
    """Reads index.tsv: many utterances a file."""
    per_file, lines = collections.defaultdict(list), {}
    shard_ids, columns = unique_ids(audio), []
    shards = {nfc(path): path for path in audio}
    for where, row in _tsv_rows(folder / INDEX_NAME, required=_INDEX_REQUIRED):
        columns = list(row)
        shard = Path(row["shard"]).as_posix()
        shard = shard if shard in audio else shards.get(shard)
        if shard is None:
            raise SourceError(f"{where}: shard {row['shard']!r} is not an audio file of {folder}.")
        if "split" in row:
            _check_split(row["split"], where=where)
        utterance_id = f"{shard_ids[shard]}/{row['file']}"
        if utterance_id in lines:
            raise SourceError(
                f"{where}: {row['file']!r} of {shard} is listed again, first on line "
                f"{lines[utterance_id]}."
            )
        lines[utterance_id] = line = int(where.rsplit(" ", 1)[-1])
        start = _count(row, "start_sample", lowest=0, where=where)
        segment = Segment(start, _count(row, "num_samples", lowest=1, where=where), line)
        fields = {key: row.get(key, "") for key in ("language", "text")}
        fields["speaker"] = row.get("speaker") or _speaker(shard, folder=folder)
        fields["split"] = row.get("split", DEFAULT_SPLIT)
        per_file[shard].append(Utterance(id=utterance_id, segment=segment, **fields))
    if not lines:
        raise SourceError(f"{folder / INDEX_NAME}: no rows under the header, so no utterances.")
    notes = _unknown_columns(INDEX_NAME, columns, known=(*_INDEX_REQUIRED, *_OPTIONAL))
    if "text" in columns:
        notes.append(_num_transcripts(per_file))
    if unlisted := sorted(set(audio) - set(per_file)):
        notes.append(f"{INDEX_NAME} names no part of {len(unlisted)} audio files: {unlisted[:3]}.")
    return per_file, [], notes


def _tsv_rows(path: Path, *, required: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields ("file, line n", row) of a tab-separated file with a header; quotes are literal."""
    first, *lines = _read(path).split("\n")
    header = [name.strip() for name in first.split("\t")]
    if missing := [name for name in required if name not in header]:
        raise SourceError(
            f"{path}, line 1: no column {', '.join(missing)} in the header {header}. "
            "Expected tab-separated columns with a header."
        )
    if len(set(header)) != len(header):
        raise SourceError(f"{path}, line 1: a column is named twice in the header {header}.")
    for number, line in enumerate(lines, start=2):
        cells = line.split("\t")
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        if len(cells) != len(header):
            raise SourceError(
                f"{where}: {len(cells)} tab-separated cells, expected {len(header)} as in the "
                f"header {header}."
            )
        yield where, dict(zip(header, cells, strict=True))


def _read(path: Path, *, may_be_empty: bool = False) -> str:
    try:
        return read_text(path, may_be_empty=may_be_empty)
    except TextError as error:
        raise SourceError(str(error)) from None


def _check_split(split: str, *, where: str) -> None:
    if not _SPLIT_NAME.fullmatch(split) or split == "all":
        raise SourceError(
            f"{where}: split {split!r}, expected letters, digits, _ and - such as train or "
            "dev-clean ('all' is taken)."
        )


def _count(row: dict[str, str], column: str, *, lowest: int, where: str) -> int:
    if not (row[column].isdecimal() and int(row[column]) >= lowest):
        raise SourceError(
            f"{where}: {column} is {row[column]!r}, expected a whole number of at least {lowest}."
        )
    return int(row[column])


def unique_ids(paths: Iterable[str]) -> dict[str, str]:
    """Ids: the path without its extension, with it where two files would share an id."""
    ids = {path: os.path.splitext(path)[0] for path in paths}
    while True:
        counts = collections.Counter(ids.values())
        shared = [path for path, id_ in ids.items() if counts[id_] > 1 and id_ != path]
        if not shared:
            return ids
        ids.update((path, path) for path in shared)


def _read_trans_texts(
    folder: Path, audio: Iterable[str], paths: Iterable[str], notes: list[str]
) -> dict[str, str]:
    """Texts of LibriSpeech's *.trans.txt files, by audio path; notes what fits no recording."""
    by_name, texts, strangers, again = _by_name(audio), {}, [], []
    for path in paths:
        if not path.endswith(".trans.txt") or Path(path).name.startswith("._"):  # macOS
            continue
        lines = _read(folder / path, may_be_empty=True).split("\n")
        for number, line in enumerate(lines, start=1):
            name, *text = re.split("[ \t]+", line.strip(), maxsplit=1)
            recordings = by_name.get((Path(nfc(path)).parent / name).as_posix(), []) if name else []
            if name and not recordings:
                strangers.append(f"{name} ({path}, line {number})")
            if texts.keys() & set(recordings):
                again.append(f"{name} ({path}, line {number})")
            for recording in recordings:
                texts.setdefault(recording, " ".join(text).strip())
    for some, what in (
        (strangers, "lines of .trans.txt files fit no recording beside them"),
        (again, "lines of .trans.txt files are of utterances that have a line; the first counts"),
    ):
        if some:
            end = ", ..." if len(some) > _NUM_NAMED else "."
            notes.append(f"{len(some)} {what}: {', '.join(some[:_NUM_NAMED])}{end}")
    return texts


def _speaker(path: str, *, folder: Path) -> str:
    """The folder that the file is in; of LibriSpeech's speaker/chapter/x.flac the first.

    Those are known by numbers, or by a name that starts with speaker and chapter.
    """
    folders = Path(path).parent.parts
    if len(folders) >= 2:
        speaker, chapter = folders[-2:]
        numbered = speaker.isdecimal() and chapter.isdecimal()
        named = re.match(rf"{re.escape(speaker)}[-_]{re.escape(chapter)}[-_]", Path(path).name)
        if numbered or named:
            return speaker
    return folders[-1] if folders else folder.name
