"""Checkpoints that cannot be read: are they damaged? All processes agree on the answer.

A checkpoint is damaged where files are missing, short, or hold what cannot be decoded. Any other
failure (disk, network, permissions, memory) says nothing about it: the read is tried again.
"""

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dinosr_jax.errors import UserError
from dinosr_jax.training import processes

_LOG = logging.getLogger(__name__)
_PAUSES = (1.0, 5.0)  # seconds, before what could not be read is tried again
_DAMAGED = "damaged: "
# How tensorstore calls what is missing, short or undecodable; without a number of the system's.
_CODES = ("NOT_FOUND", "OUT_OF_RANGE", "DATA_LOSS", "FAILED_PRECONDITION", "INVALID_ARGUMENT")

Read = TypeVar("Read")


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be written, read or gone on from; the message says what to do."""


def read_together(folder: Path, read: Callable[[Path], Read]) -> Read | None:
    """What `read` gives of the folder of a checkpoint, in all processes at once.

    It is None, after a warning, where the checkpoint is damaged for one of the processes. `read`
    must not wait for other processes.

    Raises:
      CheckpointError: One of the processes cannot read it, and it is not damaged.
    """
    content, failure = _try(folder, read)
    processes.wait_for_all(f"read {folder.name}")  # longer than a collective would
    failures = processes.together([failure] if failure else [])
    if not failures:
        return content
    others = [text for text in failures if not text.startswith(_DAMAGED)]
    if not others:
        reason = failures[0].removeprefix(_DAMAGED)
        _LOG.warning("DAMAGED checkpoint %s in %s: %s", folder.name, folder.parent, reason)
        return None
    raise CheckpointError(
        f"{folder} cannot be read: {others[0]}\nIt may be whole, and was left as it is. Check that "
        "disk and network, permissions and free memory are well on every machine, and run the same "
        "command again. If it is damaged all the same, move it away: the one before it is used."
    )


def _try(folder: Path, read: Callable[[Path], Read]) -> tuple[Read | None, str]:
    """What was read, or why it could not be."""
    for attempt, pause in enumerate((*_PAUSES, None)):
        try:
            return read(folder), ""
        except Exception as error:  # orbax and tensorstore raise many kinds
            origin = _origin(error)
            reason, damaged = first_line(origin)[:300], _is_damage(origin)
        if problem := _problem(folder):
            reason, damaged = problem, False
        if damaged and attempt:
            return None, _DAMAGED + reason
        if pause is None:
            return None, reason
        _LOG.warning("%s cannot be read (%s); trying again in %g s", folder, reason, pause)
        time.sleep(pause)
    raise AssertionError("the last pause is None")


def _origin(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _is_damage(origin: BaseException) -> bool:
    """Whether an error is of missing, short or undecodable files."""
    missing = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
    if isinstance(origin, (*missing, json.JSONDecodeError, UnicodeDecodeError)):
        return True
    text = str(origin)
    return text.startswith(tuple(f"{code}:" for code in _CODES)) and "os_error_code" not in text


def _problem(folder: Path) -> str:
    """The first file of a folder that cannot be read to its end, and why; '' where all can."""

    def fail(error: OSError) -> None:
        raise error

    path = str(folder)
    try:
        for root, _, names in os.walk(folder, onerror=fail):
            for name in names:
                path = os.path.join(root, name)
                with open(path, "rb") as file:
                    while file.read(2**24):
                        pass
    except OSError as error:
        return f"{error.filename or path}: {error.strerror or error}"
    return ""


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip() or repr(error)).splitlines()[0]
