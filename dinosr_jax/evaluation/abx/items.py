"""Item files: which stretches of which recordings ABX compares, and what is said there.

The format is that of ZeroSpeech and fastabx: a table with the columns `#file onset offset #phone
prev-phone next-phone speaker`, separated by spaces, commas or tabs, or JSON lines of these fields.
A triphone item lasts from the onset of its first phone to the offset of its third, and is labelled
by the second; a phoneme item is the phone alone.
"""

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from dinosr_jax.data.phones.phones import SILENCE, Phone
from dinosr_jax.data.text_files import nfc, read_table, read_text
from dinosr_jax.errors import UserError
from dinosr_jax.inference import outputs

Context = Literal["triphone", "phoneme"]
_HEADER = ("#file", "onset", "offset", "#phone", "prev-phone", "next-phone", "speaker")
_COLUMNS = tuple(name.removeprefix("#") for name in _HEADER)
_OTHER_NAMES = {"file-id": "file", "previous-phone": "prev-phone"}  # file_ID: Libri-Light
_NO_PHONE = {SILENCE, "SPN"}  # end a triphone: not speech, or speech whose phones are not known
_TOUCHING = 1e-6  # seconds; neighbours that are further apart have silence between them


class ItemError(UserError):
    """An item file cannot be used, or made; the message says where and what was expected."""


@dataclasses.dataclass(frozen=True)
class Items:
    """Stretches of recordings, [n] each: times in Decimal seconds, exactly as written.

    `phones` are labels, of a triphone the one in the middle; `previous` and `following` those
    beside.
    """

    files: Sequence[str]
    onsets: Sequence[Decimal]
    offsets: Sequence[Decimal]
    phones: Sequence[str]
    previous: Sequence[str]
    following: Sequence[str]
    speakers: Sequence[str]

    def __len__(self) -> int:
        return len(self.files)

    def take(self, kept: Iterable[int]) -> "Items":
        """Those of some indices, in their order."""
        kept = list(kept)
        columns = (getattr(self, field.name) for field in dataclasses.fields(self))
        return Items(*([column[i] for i in kept] for column in columns))

    def name(self, i: int) -> str:
        """What errors call an item."""
        phone = f"{self.previous[i]}-{self.phones[i]}-{self.following[i]}"
        return f"{self.files[i]} from {self.onsets[i]} to {self.offsets[i]} s ({phone})"


def frame_slices(items: Items, *, frame_rate: Fraction) -> tuple[np.ndarray, np.ndarray]:
    """[n] int64 first frames of n items, and [n] frames after the last, without rounding errors.

    Frame i is at (i + 0.5) / f s; an item has those inside: from ceil(onset f - 0.5) to
    floor(offset f - 0.5), as in fastabx. Items shorter than a frame may hold none.
    """
    up, down = 2 * frame_rate.numerator, 2 * frame_rate.denominator
    starts, ends = np.empty((2, len(items)), np.int64)
    for i, times in enumerate(zip(items.onsets, items.offsets, strict=True)):
        # ceil and floor of (t * up - down / 2) / down, in whole numbers
        (onset, one), (offset, other) = (time.as_integer_ratio() for time in times)
        starts[i] = -((one * frame_rate.denominator - onset * up) // (one * down))
        ends[i] = (offset * up - other * frame_rate.denominator) // (other * down) + 1
    return starts, ends


def read_items(path: str | Path) -> Items:
    """Reads an item file.

    Args:
      path: A table with a header (see above), or JSON lines; gzip or not. Other columns are left
        alone.

    Returns:
      The items, in the order of the file.

    Raises:
      ItemError: A column is missing, or a line is broken; names file and line.
      TextError: The file cannot be read.
    """
    columns: dict[str, list] = {name: [] for name in _COLUMNS}
    for where, row in _rows(read_text(path), path):
        for name in _COLUMNS:
            value = row[name]
            if not isinstance(value, (str, int, Decimal)) or isinstance(value, bool) or value == "":
                raise ItemError(f"{where}: {name}: found {value!r}, expected a text")
            columns[name].append(nfc(str(value)))
        onset, offset = (_seconds(row[name], f"{where}: {name}") for name in ("onset", "offset"))
        if offset < onset:
            raise ItemError(f"{where}: found an offset of {offset} s before the onset, {onset} s")
        columns["onset"][-1], columns["offset"][-1] = onset, offset
    if not columns["file"]:
        raise ItemError(f"{path}: found no item below the header")
    return Items(*columns.values())


def _seconds(value: Any, where: str) -> Decimal:
    try:
        seconds = Decimal(value)
        if 0 <= seconds < 10**9:
            return seconds
    except (InvalidOperation, TypeError, ValueError):
        pass
    raise ItemError(f"{where}: found {str(value)[:40]!r}, expected seconds, 0 or more")


def _rows(text: str, path: str | Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """File and line, and the fields by the names of the columns here."""
    if text.lstrip().startswith("{"):
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                where = f"{path}: line {number}"
                try:
                    row = json.loads(line, parse_float=Decimal)
                except (ValueError, RecursionError) as error:
                    raise ItemError(f"{where}: no JSON ({error})") from None
                if not isinstance(row, dict):
                    raise ItemError(f"{where}: found {line[:40]!r}, expected an object")
                yield where, dict(zip(_names(row, where), row.values(), strict=True))
        return
    header = text.split("\n", 1)[0]
    separator = next((mark for mark in ("\t", ",") if mark in header), " ")
    lines = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        names = _names([name for name in next(lines) if name], f"{path}: line 1")
        for row in lines:
            where = f"{path}: line {lines.line_num}"
            while row and not row[-1]:  # spaces at the end of a line
                row.pop()
            if row and len(row) != len(names):
                raise ItemError(
                    f"{where}: found {len(row)} fields, expected {len(names)}: "
                    f"{header.strip()[:200]}"
                )
            if row:
                yield where, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise ItemError(f"{path}: line {lines.line_num}: {error}") from None


def _names(given: Iterable[str], where: str) -> list[str]:
    """The names of columns here."""
    names = [name.removeprefix("#").replace("_", "-").lower() for name in given]
    names = [_OTHER_NAMES.get(name, name) for name in names]
    for name, shown in zip(_COLUMNS, _HEADER, strict=True):
        if names.count(name) != 1:
            what = "is there twice" if name in names else "is missing"
            raise ItemError(
                f"{where}: found the columns {' '.join(given)[:200]}; {shown} {what}, expected "
                f"{' '.join(_HEADER)}"
            )
    return names


def make_items(
    utterances: Mapping[str, Sequence[Phone]], speakers: Mapping[str, str], *, context: Context
) -> Items:
    """Makes items of the phones of utterances, in their order.

    Args:
      utterances: Phones by name of the utterance; in order, gaps are silence.
      speakers: Speaker of every utterance.
      context: 'triphone': three consecutive phones, from the onset of the first to the offset of
        the third; none may be silence or spoken noise. 'phoneme': every phone but these; its
        neighbours may be silence.

    Raises:
      ItemError: The speaker of an utterance is not known, or there is no item.
    """
    if unknown := [id_ for id_ in utterances if not speakers.get(id_)]:
        raise ItemError(
            f"the speakers of {len(unknown)} of {len(utterances)} utterances are not known, "
            f"expected all; the first is {unknown[0]}"
        )
    rows = [
        (id_, *item, speakers[id_])
        for id_, phones in utterances.items()
        for item in _items_of(phones, context)
    ]
    if not rows:
        raise ItemError(
            f"found no {context} without silence in {len(utterances)} utterances whose speaker is "
            "known (--prefix adds a folder to the alignment's names)"
        )
    return Items(*map(list, zip(*rows, strict=True)))


def sharing_a_stem(utterances: Iterable[str]) -> tuple[str, str] | None:
    """The first two utterances whose names are the same without folders."""
    first: dict[str, str] = {}
    for id_ in utterances:
        if (other := first.setdefault(PurePosixPath(id_).name, id_)) != id_:
            return other, id_
    return None


def named_by_stem(items: Items, utterances: Iterable[str]) -> Items:
    """The items with names of recordings without folders, as fastabx needs them.

    Raises ItemError where two of the utterances, with items or without, have the same name then.
    """
    if shared := sharing_a_stem(utterances):
        raise ItemError(
            f"--names=stem: {' and '.join(shared)} would both be called "
            f"{PurePosixPath(shared[0]).name}; expected names that differ without their folders: "
            "use --names=id"
        )
    return dataclasses.replace(items, files=[PurePosixPath(name).name for name in items.files])


def _items_of(phones: Sequence[Phone], context: Context) -> Iterator[tuple]:
    """Onset, offset and the three labels of each item of an utterance."""
    for i, phone in enumerate(phones):
        before, after = _neighbour(phones, i, -1), _neighbour(phones, i, 1)
        first, last = (before, after) if context == "triphone" else (phone, phone)
        if not {first.label, phone.label, last.label} & _NO_PHONE:
            yield _exact(first.start), _exact(last.end), phone.label, before.label, after.label


def _neighbour(phones: Sequence[Phone], i: int, step: int) -> Phone:
    """The phone before or after; silence where there is none, or a gap."""
    phone, j = phones[i], i + step
    if 0 <= j < len(phones):
        one, other = (phones[j], phone) if step < 0 else (phone, phones[j])
        if other.start - one.end <= _TOUCHING:
            return phones[j]
    return Phone(phone.start, phone.end, SILENCE)


def _exact(seconds: float) -> Decimal:
    """Seconds to a microsecond, without the noise of binary fractions."""
    return Decimal(f"{seconds:.6f}").normalize() + Decimal("0.0")


def read_speakers(path: str | Path) -> dict[str, str]:
    """Reads a table with the columns `file` (or `id`) and `speaker`, separated by tabs or commas.

    Raises ItemError where a column is missing, or an utterance has two speakers.
    """
    names, rows = read_table(path)
    key = next((name for name in ("file", "id") if name in names), None)
    if key is None or "speaker" not in names:
        raise ItemError(f"{path}: found the columns {names}, expected file and speaker")
    speakers: dict[str, str] = {}
    for number, row in rows:
        id_, speaker = row[key], row["speaker"]
        if not id_ or not speaker:
            raise ItemError(f"{path}: line {number}: expected a file and its speaker")
        if speakers.setdefault(id_, speaker) != speaker:
            raise ItemError(
                f"{path}: line {number}: {id_}: found the speakers {speakers[id_]} and "
                f"{speaker}, expected one"
            )
    return speakers


def write_items(path: str | Path, items: Items) -> None:
    """Writes an item file: .csv, .jsonl, or for other names the format of ZeroSpeech."""
    path, text = Path(path), io.StringIO()
    times = ([f"{second:f}" for second in column] for column in (items.onsets, items.offsets))
    labels = (items.phones, items.previous, items.following, items.speakers)
    rows = zip(items.files, *times, *labels, strict=True)
    if path.suffix in (".jsonl", ".ndjson"):
        for row in rows:
            text.write(json.dumps(dict(zip(_HEADER, row, strict=True)), ensure_ascii=False) + "\n")
    else:
        separator = "," if path.suffix == ".csv" else " "
        writer = csv.writer(text, delimiter=separator, lineterminator="\n")
        writer.writerow(_HEADER)
        writer.writerows(rows)
    outputs.write_text(path, text.getvalue())
