"""A file of transcripts that is written in the order of the input, and survives being killed.

Lines that are finished, in another order, are kept in .OUTPUT.partial beside the output. An empty
line there ends what a run that goes on can rely on: what follows the last one is dropped.
"""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinosr_jax import files
from dinosr_jax.inference import outputs
from dinosr_jax.inference.recognition.decoding import Hypothesis

_COMMIT = b"\n\n"


class TranscriptFile:
    """Transcripts of utterances as JSON lines; to be used in a `with` block.

    Attributes:
      lines: By name of the utterance, with their line ends: those of the output that is there
        already, of a run that was stopped, and those that were added.
    """

    def __init__(self, output: Path, *, key: str, about: Mapping[str, Any]):
        """Nothing is read or written yet.

        Args:
          output: JSON lines; OUTPUT's stem with .about.json describes how they were made.
          key: Field of the utterance's name.
          about: How they are made, as plain values.
        """
        self._output, self._key, self._about = output, key, about
        self._partial = output.with_name(f".{output.name}.partial")
        self._side = output.with_name(f"{output.stem}.about.json")
        self._waiting: list[str] = []
        self.lines: dict[str, str] = {}

    def __enter__(self) -> "TranscriptFile":
        """Reads what is there.

        Raises:
          OutputError: It was made in another way, another process is writing it, or it cannot be
            written.
        """
        if self._output.is_dir():
            raise outputs.OutputError(f"{self._output} is a folder; expected a file: hyp.jsonl")
        try:
            self._partial.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
            self._file = os.fdopen(os.open(self._partial, flags, 0o666), "ab+")
        except OSError as error:
            raise outputs.failed(self._partial, error) from error
        try:
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def _read(self) -> None:
        try:
            files.lock(self._file.fileno(), name=self._output)
        except BlockingIOError:
            raise outputs.OutputError(
                f"{self._output}: another process is writing it; wait, or choose another --output"
            ) from None
        self._file.seek(0)
        kept = self._file.read()
        kept = kept[: kept.rfind(_COMMIT) + len(_COMMIT)] if _COMMIT in kept else b""
        whole = self._output.read_bytes() if self._output.exists() else b""
        if not self._side.exists():  # what nobody knows the making of is written anew
            whole = kept = b""
        if not whole + kept:
            self._side.unlink(missing_ok=True)
        outputs.claim(self._side.parent, self._about, name=self._side.name, what="transcripts")
        self._file.truncate(len(kept))
        for line in (whole + kept).decode("utf-8", "replace").split("\n"):
            self._take(line)

    def _take(self, line: str) -> None:
        try:
            name = json.loads(line)[self._key]
        except (ValueError, KeyError, TypeError, RecursionError):
            return
        if isinstance(name, str):
            self.lines[name] = line + "\n"

    def add(self, name: str, hypothesis: Hypothesis, *, commit: bool) -> None:
        """Adds the line of an utterance, by its name.

        With `commit`, all lines so far are on disk: a run that goes on begins after them.
        """
        words = [word._asdict() for word in hypothesis.words]
        line = {self._key: name, "text": hypothesis.text, "words": words}
        line["score"] = round(hypothesis.score, 4)
        self.lines[name] = json.dumps(line, ensure_ascii=False) + "\n"
        self._waiting.append(self.lines[name])
        if commit:
            self._commit()

    def _commit(self) -> None:
        text, self._waiting = "".join(self._waiting), []
        try:
            self._file.write(text.encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise outputs.failed(self._partial, error) from error

    def finish(self, names: Sequence[str]) -> None:
        """Writes the lines of these names, whole or not at all; removes the partial file."""
        if self._waiting:
            self._commit()
        outputs.write_text(self._output, "".join(self.lines[name] for name in names))
        self._partial.unlink(missing_ok=True)

    def __exit__(self, *_: object) -> None:
        """What was not committed is forgotten."""
        with contextlib.suppress(OSError):
            self._file.close()
            if self._partial.stat().st_size == 0:
                self._partial.unlink()
