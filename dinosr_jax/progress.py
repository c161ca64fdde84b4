"""Progress bars, as a bar on a terminal and as lines in a file; and the log on stderr."""

import logging
import sys
import time
from typing import Any

from absl import logging as absl_logging
from tqdm import auto, std

_LINE_SECONDS = 30


def progress_bar(*args: Any, **options: Any) -> std.tqdm:
    """A bar of tqdm (its arguments) on stderr; where that is no terminal, one that writes lines.

    Such a line says what is done, of how much, how fast, and how long the rest takes; the last one
    comes at the end.
    """
    if sys.stderr.isatty():
        return auto.tqdm(*args, **({"dynamic_ncols": True} | options))
    return _Lines(*args, **options)


def log_to_terminal() -> None:
    """Shows the log of this package on stderr, and of absl, which orbax writes to, warnings."""
    absl_logging.set_verbosity(absl_logging.WARNING)  # orbax tells a page a checkpoint
    logger = logging.getLogger("dinosr_jax")
    logger.addHandler(logging.StreamHandler())
    logger.setLevel(logging.INFO)
    logger.propagate = False


class _Lines(std.tqdm):
    """A bar that writes a whole line, every half minute at most and at the end."""

    def __init__(self, *args: Any, **options: Any):
        self._written, self._last = time.monotonic(), ""
        # "s of audio" a second, never seconds a "s of audio"
        rate = "rate_noinv_fmt" if "noinv" in options.get("bar_format", "") else "rate_fmt"
        count = "{l_bar} {n_fmt}/{total_fmt} [{elapsed}<{remaining}"
        options["bar_format"] = f"{count}, {{{rate}}}{{postfix}}]"
        options |= {"mininterval": _LINE_SECONDS, "miniters": 1}
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Writes a line, if it is time for one."""
        if time.monotonic() - self._written >= _LINE_SECONDS:
            self._line()

    def _line(self) -> None:
        text = str(self)
        if text != self._last:
            self.fp.write(f"{text}\n")
            self.fp.flush()
        self._written, self._last = time.monotonic(), text

    def clear(self, nolock: bool = False) -> None:
        """Does nothing: a line stays, other lines come below it."""

    def reset(self, total: float | None = None) -> None:
        """Begins anew; the line of what was done until now is written."""
        if self.n and not self.disable:
            self._line()
        super().reset(total)

    def close(self) -> None:
        """Writes the last line, where something was done, and took a while."""
        if not self.disable and self.n > self.initial:
            if time.time() - self.start_t >= self.delay:
                self._line()
        self.sp = None  # nothing is left to be drawn
        super().close()
