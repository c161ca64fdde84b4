"""Transcripts by utterance, in the forms that they come in.

JSON lines, tables with a header (TSV, CSV), lines of an id and its words (LibriSpeech's .trans.txt,
Kaldi's text), a tree of .trans.txt files, or a prepared dataset.
"""

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from dinosr_jax.data.phones.alignments import Alignment
from dinosr_jax.data.text_files import TextError, nfc, read_text

NAMES = ("file", "name", "fileid", "audio", "id", "path", "audio_filepath", "utterance")
TEXTS = ("text", "transcript", "sentence", "transcription")
_LIBRISPEECH = re.compile(r"(?:.*/)?(\d+)-\d+-\d+")


class Transcript(NamedTuple):
    """What is said in an utterance, and by whom; '' where it is not known."""

    id: str
    text: str
    speaker: str = ""


class Pair(NamedTuple):
    """A reference and what was recognised; None where nothing was."""

    reference: Transcript
    hypothesis: str | None


def read_transcripts(path: Path, *, split: str = "", language: str = "") -> dict[str, Transcript]:
    """Transcripts of a file, a tree or a prepared dataset (see the head of this file), by id.

    The speaker is the column `speaker`, that of the dataset, or the first number of a LibriSpeech
    id.

    Args:
      path: Of one of them.
      split: Of the prepared dataset, in TFDS syntax.
      language: Only utterances of it, as the prepared dataset names it; '' for all.

    Raises:
      TextError: Something is malformed; the line is named. An id is there twice.
      ManifestError: No such dataset or split.
    """
    if split:
        rows: Iterable[tuple[str, Transcript]] = _of_dataset(path, split, language)
    elif path.is_dir():
        files = sorted(Path(root, n) for root, _, names in os.walk(path) for n in names)
        files = [f for f in files if f.name.endswith(".trans.txt") and f.name[:2] != "._"]  # macOS
        if not files:
            raise TextError(
                f"{path}: no .trans.txt file in this folder; for a prepared dataset, name its "
                "--split"
            )
        rows = (row for file in files for row in _of_file(file))
    else:
        rows = _of_file(path)
    transcripts: dict[str, Transcript] = {}
    places: dict[str, str] = {}
    for where, row in rows:
        if row.id in transcripts:
            raise TextError(
                f"{where}: {row.id!r} is there twice, the first time in {places[row.id]}; expected "
                "every utterance once"
            )
        places[row.id] = where
        speaker = row.speaker
        if not speaker and (numbers := _LIBRISPEECH.fullmatch(row.id)):
            speaker = numbers[1]
        transcripts[row.id] = row._replace(speaker=speaker)
    if not transcripts:
        raise TextError(f"{path}: found no transcript")
    return transcripts


def _of_dataset(path: Path, split: str, language: str) -> Iterator[tuple[str, Transcript]]:
    from dinosr_jax.data import manifest as manifests  # needs tensorflow-datasets

    manifest = manifests.load_manifest(path, dataset=manifests.dataset_in(path), split=split)
    columns = (manifest.ids, manifest.texts, manifest.speakers, manifest.languages)
    for *row, spoken in zip(*columns, strict=True):
        if row[1] and language in ("", spoken):
            yield str(path), Transcript(*map(str, row))


def _of_file(path: Path) -> Iterator[tuple[str, Transcript]]:
    text = read_text(path)
    lines = [(f"{path}: line {n}", line) for n, line in enumerate(text.split("\n"), start=1)]
    lines = [(where, line) for where, line in lines if line.strip()]
    if not lines:
        return
    first = lines[0][1]
    if first.lstrip().startswith("{"):
        yield from _json_lines(lines)
    elif (delimiter := _delimiter(first)) is not None:
        yield from _table(text, path, delimiter)
    else:
        for where, line in lines:
            name, *words = line.split(maxsplit=1)
            yield where, Transcript(name, " ".join(words).strip())


def _json_lines(lines: list[tuple[str, str]]) -> Iterator[tuple[str, Transcript]]:
    for where, line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TextError(f"{where}: no JSON ({error})") from None
        if not isinstance(row, dict):
            raise TextError(f"{where}: found {line[:60]!r}, expected a JSON object")
        yield where, _transcript(row, where)


def _delimiter(header: str) -> str | None:
    """Of a table whose header names an utterance and a text; None where it is none."""
    for delimiter in "\t,;":
        columns = {column.strip().lower() for column in header.split(delimiter)}
        if columns & set(NAMES) and columns & set(TEXTS):
            return delimiter
    return None


def _table(text: str, path: Path, delimiter: str) -> Iterator[tuple[str, Transcript]]:
    """Rows of a table; a quoted field of CSV may hold line ends."""
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    how = {"delimiter": delimiter, "quoting": quoting, "strict": True}
    rows = csv.reader(io.StringIO(text), **how)
    columns: list[str] = []
    where = f"{path}: line 1"
    try:
        for values in rows:
            if any(values) and not columns:
                columns = [column.strip().lower() for column in values]
            elif any(values):
                if len(values) != len(columns):
                    raise TextError(f"{where}: found {len(values)} fields, expected {len(columns)}")
                yield where, _transcript(dict(zip(columns, values, strict=True)), where)
            where = f"{path}: line {rows.line_num + 1}"
    except csv.Error as error:
        raise TextError(f"{where}: {error}; expected fields between {delimiter!r}") from None


def _transcript(row: dict, where: str) -> Transcript:
    fields = {field: str(value) for field, value in row.items() if type(value) in (str, int)}
    names = [name for name in NAMES if fields.get(name)]
    texts = [name for name in TEXTS if isinstance(row.get(name), str)]
    if not names or not texts:
        raise TextError(
            f"{where}: expected an utterance ({', '.join(NAMES)}) and its text "
            f"({', '.join(TEXTS)}); found the fields {', '.join(map(str, row)) or 'none'}"
        )
    return Transcript(nfc(fields[names[0]]), nfc(row[texts[0]]), nfc(fields.get("speaker", "")))


def join(
    references: dict[str, Transcript], hypotheses: dict[str, Transcript], *, path: Path
) -> tuple[list[Pair], list[str]]:
    """References and what was recognised, matched by id, else by name where that is unambiguous.

    Returns a pair for each reference, in order; and the hypotheses that have none. Raises
    TextError, with the `path` of the references, where a name fits several utterances.
    """
    matched = match(references, hypotheses, path=path)
    pairs = [
        Pair(row, hypotheses[matched[id_]].text if id_ in matched else None)
        for id_, row in references.items()
    ]
    used = set(matched.values())
    return pairs, [id_ for id_ in hypotheses if id_ not in used]


def match(
    references: Mapping[str, Transcript], ids: Iterable[str], *, path: Path
) -> dict[str, str]:
    """Which of some ids each reference is, by its whole id, else by its name where only one fits.

    Raises TextError where a name fits several utterances.
    """
    keyed = {_without_extension(id_): row for id_, row in references.items()}
    keyed = keyed if len(keyed) == len(references) else dict(references)
    names = {_without_extension(id_): id_ for id_ in ids}
    matched = Alignment(keyed, "jsonl", str(path)).match(names)
    return {row.id: names[id_] for id_, row in matched.items()}


def _without_extension(id_: str) -> str:
    stem, extension = os.path.splitext(id_)
    return stem if extension.lower() in {".flac", ".wav", ".ogg", ".mp3", ".opus"} else id_
