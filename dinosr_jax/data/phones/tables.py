"""Tables of phones: fairseq's, CPC's, JSON lines, discophon's, and ours.

Labels at equal steps become runs, whose times are exact decimals: label 357 starts at 3.57 s.
"""

import collections
import functools
import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from dinosr_jax.data.phones.phones import Phone, in_order
from dinosr_jax.data.phones.textgrid import Span
from dinosr_jax.data.text_files import TextError, nfc

ID_KEYS = ("file", "name", "fileid", "audio")
_STEP = Decimal("0.01")
_COLUMNS = ("file", "start_s", "end_s", "phone")


def parse_object(line: str, *, path: Path, number: int) -> dict[str, Any]:
    """The JSON object of a line.

    Raises:
      TextError: It is none.
    """
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TextError(
            f"{path}: line {number}: found {line[:60]!r}, expected a JSON object ({error})"
        ) from None
    if not isinstance(entry, dict):
        raise TextError(f"{path}: line {number}: found {line[:60]!r}, expected a JSON object")
    return entry


def id_of(entry: Mapping[str, Any], path: Path, number: int) -> str:
    """The utterance that an object is of: its field file, name, fileid or audio."""
    names = [key for key in ID_KEYS if isinstance(entry.get(key), str) and entry[key]]
    if len(names) != 1:
        fields = ", ".join(entry)[:60] or "none"
        raise TextError(
            f"{path}: line {number}: found the fields {fields}; expected one of "
            f"{', '.join(ID_KEYS)} with the utterance's name"
        )
    return nfc(entry[names[0]])


class Table(NamedTuple):
    """Lines of a file, and how its labels are called."""

    path: Path
    lines: list[str]
    named: Callable[[str], str]

    def rows(self, *, skip: int = 0) -> Iterator[tuple[int, str]]:
        """Number and text of every line that is not empty."""
        return ((n, t) for n, t in enumerate(self.lines, 1) if n > skip and t.strip())

    def refuse(self, number: int, found: Any, expected: str) -> None:
        """Raises TextError."""
        raise TextError(f"{self.path}: line {number}: found {found}, expected {expected}")

    def at_steps(self, rows: Iterable[tuple[int, str, list[str], Decimal]]) -> dict[str, Any]:
        """Phones of labels at equal steps: runs of the same label, whose times are exact."""
        phones_of, lines = {}, {}
        for number, id_, labels, step in rows:
            if not labels:
                self.refuse(number, f"no label of {id_}", "one at least")
            if id_ in phones_of:
                self.refuse(number, f"{id_}, which is in line {lines[id_]} too", "every id once")
            phones, begin = [], 0
            for label, run in itertools.groupby(map(self.named, labels)):
                end = begin + len(list(run))
                phones.append(Phone(float(begin * step), float(end * step), label))
                begin = end
            phones_of[id_], lines[id_] = tuple(phones), number
        return phones_of

    def at_times(self, rows: Iterable[tuple[str, str, str, str, int]]) -> dict[str, Any]:
        """Phones of intervals with an id, start and end as text, label and line."""
        spans = collections.defaultdict(list)
        for id_, start, end, label, number in rows:
            try:
                spans[id_].append(Span(float(start), float(end), label, number))
            except ValueError:
                self.refuse(number, f"times {start[:20]!r} and {end[:20]!r}", "seconds")
        ordered = functools.partial(in_order, path=self.path, named=self.named)
        return {id_: ordered(id_, of_id) for id_, of_id in spans.items()}


_AtSteps = Iterator[tuple[int, str, list[str], Decimal]]  # line, id, labels, seconds a label
_AtTimes = Iterator[tuple[str, str, str, str, int]]  # id, start, end, label, line


def read_utterances(table: Table, kind: str) -> dict[str, tuple[Phone, ...]]:
    """Phones by id of the utterance, of a table of a kind in `alignments.Kind`."""
    if kind in _AT_STEPS:
        return table.at_steps(_AT_STEPS[kind](table))
    return table.at_times(_AT_TIMES[kind](table))


def _fairseq(table: Table) -> _AtSteps:
    for number, line in table.rows():
        id_, tab, phones = line.rstrip().partition("\t")
        labels = phones.split(",")
        if not (id_.strip() and tab and all(labels)) or len(phones.split()) > 1:
            expected = "an id, a tab, and phones with commas between"
            table.refuse(number, repr(line[:60]), expected)
        yield number, id_, labels, _STEP


def _cpc(table: Table) -> _AtSteps:
    for number, line in table.rows():
        id_, *labels = line.split()
        odd = next((label for label in labels if not label.isdecimal()), None)
        if odd is not None or not labels:
            table.refuse(number, repr((odd or line)[:60]), "an id and whole numbers")
        yield number, id_, labels, _STEP


def _jsonl(table: Table) -> _AtSteps:
    for number, line in table.rows():
        entry = parse_object(line, path=table.path, number=number)
        labels, step = entry.get("phones"), entry.get("step")
        step = float(_STEP) if step is None else step
        if not (isinstance(labels, list) and set(map(type, labels)) <= {str, int}):
            table.refuse(number, f"phones: {str(labels)[:60]}", "a list of labels")
        if type(step) not in (int, float) or not 0 < step < math.inf:
            table.refuse(number, f"step: {step!r}", "seconds a label")
        id_ = id_of(entry, table.path, number)
        yield number, id_, list(map(str, labels)), Decimal(repr(step))


def _discophon(table: Table) -> _AtTimes:
    (first, header), *_ = table.rows()
    if header.split() != ["#file", "onset", "offset", "#phone"]:
        table.refuse(first, repr(header[:80]), "#file onset offset #phone (an item file is none)")
    for number, line in table.rows(skip=first):
        fields = line.rsplit(maxsplit=3)
        if len(fields) != 4:
            table.refuse(number, repr(line[:60]), "file, onset, offset, phone")
        yield *fields, number


def _tsv(table: Table) -> _AtTimes:
    (first, header), *_ = table.rows()
    names = header.split("\t")
    if missing := [name for name in _COLUMNS if names.count(name) != 1]:
        table.refuse(first, f"the columns {', '.join(names)[:80]}", f"{', '.join(missing)} once")
    places = [names.index(name) for name in _COLUMNS]
    for number, line in table.rows(skip=first):
        fields = line.split("\t")
        if len(fields) != len(names) or not fields[places[0]].strip():
            table.refuse(number, repr(line[:60]), f"{len(names)} fields: {', '.join(names)}")
        yield *(fields[place] for place in places), number


_AT_STEPS = {"fairseq": _fairseq, "cpc": _cpc, "jsonl": _jsonl}
_AT_TIMES = {"discophon": _discophon, "tsv": _tsv}
