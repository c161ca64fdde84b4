"""What a run writes down: metrics.jsonl, TensorBoard events, curves as PNG."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from dinosr_jax.training.curves import draw_curves

_LOG = logging.getLogger(__name__)


class RunLog:
    """The records of a run in its workdir.

    A run that goes on from step k drops what was recorded after k, so that metrics.jsonl holds
    every step once.
    """

    def __init__(self, workdir: Path, *, start_step: int):
        self.path = Path(workdir) / "metrics.jsonl"
        self.figure = Path(workdir) / "curves.png"
        _keep_until(self.path, start_step)
        self._file = self.path.open("a")
        self._events = SummaryWriter(str(workdir / "events"), purge_step=start_step + 1)

    def write(self, record: dict[str, Any]) -> None:
        """Adds a record; it has a `step` and a `loss`.

        Raises:
          OSError: The disk is full or gone; names the file.
        """
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        for name, value in record.items():
            if name != "step":
                self._events.add_scalar(name, value, record["step"])

    def draw(self) -> None:
        """Draws the curves of all records so far; where that fails, says so and goes on."""
        try:
            draw_curves(read_records(self.path), self.figure)
        except OSError as error:
            _LOG.warning("%s could not be drawn: %s", self.figure, error)

    def close(self) -> None:
        """Ends the files; what a full disk does not take is lost, and said."""
        for file in (self._file, self._events):
            try:
                file.close()
            except OSError as error:
                _LOG.warning("%s could not be ended: %s", self.path, error)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl; a last line that was cut off by a kill is left out."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def _keep_until(path: Path, step: int) -> None:
    """Rewrites a metrics.jsonl without the records after a step, atomically."""
    if not path.exists():
        return
    kept = [record for record in read_records(path) if record["step"] <= step]
    replace_text(path, "".join(json.dumps(record) + "\n" for record in kept))


def replace_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all, also where the process is killed or the disk full."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
