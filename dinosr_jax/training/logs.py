"""The records of a run: metrics.jsonl, TensorBoard, curves as PNG."""

import json
import logging
import math
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from dinosr_jax import files
from dinosr_jax.training.curves import draw_curves

_LOG = logging.getLogger(__name__)
_HELD_OUT = b'"eval_'
_DRAWN = 5000  # records; a picture shows no more


class RunLog:
    """The records of a run in its workdir; those after `start_step` are dropped at the start."""

    def __init__(self, workdir: Path, *, start_step: int):
        self.path = Path(workdir) / "metrics.jsonl"
        self.figure = Path(workdir) / "curves.png"
        _keep_until(self.path, start_step)
        self._file = self.path.open("a")
        self._events = SummaryWriter(str(workdir / "events"), purge_step=start_step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Adds a record with a `step`; an OSError of a full disk names the file."""
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        for name, value in record.items():
            if name != "step":
                self._events.add_scalar(name, value, record["step"])

    def draw(self) -> None:
        """Draws the curves of all records so far; a failure is a warning."""
        try:
            draw_curves(read_records(self.path, at_most=_DRAWN), self.figure)
        except OSError as error:
            _LOG.warning("%s could not be drawn: %s", self.figure, error)

    def close(self) -> None:
        """Closes the files; what a full disk does not take is lost, with a warning."""
        for file in (self._file, self._events):
            try:
                file.close()
            except OSError as error:
                _LOG.warning("%s could not be ended: %s", self.path, error)


def read_records(path: Path, *, at_most: int | None = None) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl, which have a whole number as `step`; other lines are left out.

    Of more lines than `at_most` every k-th is read, about so many, and as many of those with
    held-out figures; the last line always.
    """
    every = every_held_out = 1
    lines = held_out = -1
    if at_most:
        with path.open("rb") as file:
            for lines, line in enumerate(file):  # noqa: B007
                held_out += _HELD_OUT in line
        every = max(1, math.ceil((lines + 1) / at_most))
        every_held_out = max(1, math.ceil((held_out + 1) / at_most))
    records, evaluations = [], 0
    with path.open("rb") as file:
        for k, line in enumerate(file):
            evaluated = _HELD_OUT in line
            evaluations += evaluated
            if k % every and k != lines and not (evaluated and evaluations % every_held_out == 0):
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict) and type(record.get("step")) is int:
                records.append(record)
    return records


def _keep_until(path: Path, step: int) -> None:
    """Rewrites a metrics.jsonl without the records after a step, atomically."""
    if not path.exists():
        return
    kept = [record for record in read_records(path) if record["step"] <= step]
    files.replace_text(path, "".join(json.dumps(record) + "\n" for record in kept))
