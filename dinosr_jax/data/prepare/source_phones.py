"""Phones in a source folder are copied to the prepared dataset, under the ids of its records.

`phones.tsv` is of all utterances, `phones_LANGUAGE.tsv` of those in a language: by the column
`language` of the tables, else by a folder or file whose name is or ends in _LANGUAGE.
"""

import collections
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from dinosr_jax import files
from dinosr_jax.data.phones.alignments import PHONES_NAME, Alignment, read_alignment
from dinosr_jax.data.phones.phones import Phone
from dinosr_jax.data.prepare.sources import Source, SourceError, Utterance
from dinosr_jax.data.text_files import TextError, nfc

_NAME = re.compile(r"phones(?:_(?P<language>.+))?\.tsv")
_COLUMNS = ("file", "start_s", "end_s", "phone")
Named = tuple[str, Utterance]  # path of the audio file, and an utterance in it


def carry_phones(source: Source, *, folder: Path) -> None:
    """Writes the phones of a source, if it has any, into the folder of its dataset.

    Raises:
      SourceError: a table is malformed, or does not say which utterance it means.
    """
    phones_of: dict[str, tuple[Phone, ...]] = {}
    for name, part in (source.parts or {"": source}).items():
        prefix = f"{name}/" if name else ""
        phones_of |= {prefix + id_: phones for id_, phones in _phones_of(part).items()}
    kept = {utterance.id for file in source.files for utterance in file.utterances}
    if phones_of := {id_: phones for id_, phones in phones_of.items() if id_ in kept}:
        _write(phones_of, folder / PHONES_NAME)


def _phones_of(source: Source) -> dict[str, tuple[Phone, ...]]:
    """Phones by id of the utterance, of the tables in one folder."""
    phones_of: dict[str, tuple[Phone, ...]] = {}
    names = [name for name in sorted(os.listdir(source.folder)) if _NAME.fullmatch(name)]
    for name in names:
        path = source.folder / name
        try:
            alignment = read_alignment(path)
        except TextError as error:
            raise SourceError(f"{error}. Correct it, or give it another name.") from None
        language = _NAME.fullmatch(name)["language"]
        phones = _match(alignment, list(_candidates(source, language)))
        if twice := sorted(phones_of.keys() & phones.keys()):
            raise SourceError(f"{path}: phones of {twice[0]} are in another table too. Remove one.")
        print(f"{name}: phones of {len(phones)} utterances ({len(alignment.utterances)} listed).")
        phones_of |= phones
    return phones_of


def _candidates(source: Source, language: str | None) -> Iterator[Named]:
    """Utterances that a table may be about."""
    of_table = nfc(language or "").casefold()
    for file in source.files:
        for utterance in file.utterances:
            parts = PurePosixPath(nfc(utterance.id).casefold()).parts
            by_name = any(part == of_table or part.endswith(f"_{of_table}") for part in parts)
            spoken = utterance.language.casefold()
            if language is None or (spoken == of_table if spoken else by_name):
                yield file.path, utterance


def _in_shard(named: Named) -> str:
    """The name that index.tsv gives an utterance."""
    path, utterance = named
    for shard in (os.path.splitext(path)[0], path):
        if utterance.segment is not None and utterance.id.startswith(f"{shard}/"):
            return utterance.id.removeprefix(f"{shard}/")
    return utterance.id


_NAMES: Sequence[Callable[[Named], str]] = (
    lambda named: named[1].id,
    lambda named: named[0],
    _in_shard,
    lambda named: PurePosixPath(named[1].id).name,
)


def _match(alignment: Alignment, candidates: list[Named]) -> dict[str, tuple[Phone, ...]]:
    """Phones by id of the record: by the id, the path, the name in index.tsv, the name alone."""
    unused, matched = dict(alignment.utterances), {}
    for name_of in _NAMES:
        users = collections.defaultdict(list)
        for named in candidates:
            if named[1].id not in matched and nfc(name_of(named)) in unused:
                users[nfc(name_of(named))].append(named[1].id)
        for name, ids in users.items():
            if len(ids) > 1:
                raise SourceError(
                    f"{alignment.path}: {name!r} may be {ids[0]} or {ids[1]}. Write such ids into "
                    "the column file, or make one table a language, named phones_LANGUAGE.tsv."
                )
            matched[ids[0]] = unused.pop(name)
    return matched


def _write(phones_of: dict[str, tuple[Phone, ...]], path: Path) -> None:
    """Writes the table whole or not at all, where it is not there already."""
    lines = ["\t".join(_COLUMNS)]
    for id_, phones in sorted(phones_of.items()):
        if not set(id_) & set("\t\r\n"):
            lines += [f"{id_}\t{start!r}\t{end!r}\t{label}" for start, end, label in phones]
    content = ("\n".join(lines) + "\n").encode()
    if not path.is_file() or path.read_bytes() != content:
        with files.replacing(path) as file:
            file.write(content)
