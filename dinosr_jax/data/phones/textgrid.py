"""Reads Praat's TextGrid files, long and short, and writes long ones.

As Praat does, both are read as one stream of texts in quotes, numbers that stand alone, and flags
such as <exists>; other words are skipped. A file that is cut is an error.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dinosr_jax.data.text_files import TextError

# words that are none of these are passed over; what follows a ! is a comment
_TOKEN = re.compile(
    r'(?P<text>"[^"]*(?:""[^"]*)*")|(?<![^\s=])(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)'
    r'(?![^\s"])|(?<!\S)(?P<flag><\w+>)|(?<!\S)(?P<comment>![^\n]*)|(?P<open>")'
)


class Span(NamedTuple):
    """A text from `start` to `end`, in seconds, and the line of the file that it is in."""

    start: float
    end: float
    text: str
    line: int


def interval_tiers(text: str, *, path: str | Path) -> list[tuple[str, list[Span]]]:
    """Name and intervals of each interval tier of a TextGrid; `path` is for errors.

    Raises:
      TextError: It is no TextGrid, or cut, or its sizes are not those of what it holds.
    """
    tokens = _Tokens(text, path)
    for expected in (("ooTextFile", "ooTextFile short"), ("TextGrid",)):
        if tokens.text(f'"{expected[0]}"') not in expected:
            tokens.fail(f'"{expected[0]}"', back=1)
    tokens.number("the start of the file in seconds")
    tokens.number("the end of the file in seconds")
    tiers = []
    for _ in range(tokens.size("the number of tiers") if tokens.flag() == "<exists>" else 0):
        kind, name = tokens.text("a tier's class"), tokens.text("a tier's name")
        if kind not in ("IntervalTier", "TextTier"):
            tokens.fail('"IntervalTier" or "TextTier"', back=2)
        tokens.number(f"the start of tier {name!r}")
        tokens.number(f"the end of tier {name!r}")
        rows = [tokens.row(kind, name) for _ in range(tokens.size(f"the size of tier {name!r}"))]
        if kind == "IntervalTier":
            tiers.append((name, rows))
    if tokens.rest():
        tokens.fail("the end of the file: more is there than the sizes say")
    return tiers


class _Tokens:
    """Texts, numbers and flags of a file, one after the other."""

    def __init__(self, text: str, path: str | Path):
        self._path, self._next = path, 0
        self._tokens: list[tuple[str | None, str, int]] = []  # kind, text, line
        line = begin = 0
        for match in _TOKEN.finditer(text):
            line, begin = line + text.count("\n", begin, match.start()), match.start()
            if match.lastgroup != "comment":
                self._tokens.append((match.lastgroup, match[0], line + 1))
        self._last_line = text.rstrip().count("\n") + 1

    def rest(self) -> bool:
        """Whether there is more."""
        return self._next < len(self._tokens)

    def text(self, what: str) -> str:
        return self._take("text", what)[1:-1].replace('""', '"')

    def number(self, what: str) -> float:
        return float(self._take("number", what))

    def flag(self) -> str:
        return self._take("flag", "<exists>")

    def size(self, what: str) -> int:
        value = self.number(what)
        if value < 0 or not value.is_integer():
            self.fail(what, back=1)
        return int(value)

    def row(self, kind: str, tier: str) -> Span:
        """An interval, or a point, which ends where it starts."""
        start = self.number(f"a start time in tier {tier!r}")
        _, _, line = self._tokens[self._next - 1]
        end = self.number(f"an end time in tier {tier!r}") if kind == "IntervalTier" else start
        return Span(start, end, self.text(f"a text in tier {tier!r}"), line)

    def fail(self, expected: str, *, back: int = 0) -> None:
        """Raises TextError at the next token, or at one before it."""
        there = [*self._tokens, (None, "the end of the file (is it cut?)", self._last_line)]
        kind, value, line = there[self._next - back]
        value = "a text that is not closed" if kind == "open" else value[:60]
        raise TextError(f"{self._path}: line {line}: found {value}, expected {expected}")

    def _take(self, kind: str, what: str) -> str:
        if not self.rest() or self._tokens[self._next][0] != kind:
            self.fail(what)
        self._next += 1
        return self._tokens[self._next - 1][1]


class Interval(NamedTuple):
    """A text from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str


def to_textgrid(tiers: Mapping[str, Sequence[Interval]], *, end: float) -> str:
    """The text of a TextGrid; quotes within names and texts are doubled, as Praat has it.

    Args:
      tiers: Name -> intervals without gaps from 0 to `end`.
      end: Length in seconds.
    """
    quoted = lambda text: '"' + text.replace('"', '""') + '"'
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {_seconds(end)}",
        "tiers? <exists>",
        f"size = {len(tiers)}",
        "item []:",
    ]
    for i, (name, intervals) in enumerate(tiers.items(), start=1):
        lines += [
            f"    item [{i}]:",
            '        class = "IntervalTier"',
            f"        name = {quoted(name)}",
            "        xmin = 0",
            f"        xmax = {_seconds(end)}",
            f"        intervals: size = {len(intervals)}",
        ]
        for j, interval in enumerate(intervals, start=1):
            lines += [
                f"        intervals [{j}]:",
                f"            xmin = {_seconds(interval.start)}",
                f"            xmax = {_seconds(interval.end)}",
                f"            text = {quoted(interval.text)}",
            ]
    return "\n".join(lines) + "\n"


def _seconds(value: float) -> str:
    """Up to ten decimals: no 0.060000000000000005, no exponent."""
    return f"{value:.10f}".rstrip("0").rstrip(".") or "0"
