"""Several processes that train together: how they start, stop at one step, and end when one dies.

There is one a host (TPU), a node or a GPU; each reads its own rows of the same global batches, and
the first writes logs. All do what waits for the others (an update, an evaluation, a checkpoint) at
the same step.
"""

import contextlib
import faulthandler
import logging
import os
import platform
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from dinosr_jax.errors import UserError

HEARTBEAT_SECONDS = 60  # a process that is silent for so long counts as gone
_BARRIER_SECONDS = 3600
_LOG = logging.getLogger(__name__)


class ProcessError(UserError, RuntimeError):
    """The processes cannot start together."""


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes; must come before anything else of jax.

    `coordinator` is HOST:PORT of the first process, ids count from 0. On SLURM, TPU pods and Open
    MPI jax finds what is None.

    Raises:
      ProcessError: They did not come together.
    """
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
        )
        # Where one is gone, jax ends the others with a message, which a dump would bury.
        faulthandler.disable()
    except (ValueError, RuntimeError) as error:
        raise ProcessError(
            f"--distributed: the processes did not come together: {error}\nOutside of SLURM, TPU "
            "pods and Open MPI, give each --coordinator=HOST:PORT (of the first), "
            "--num_processes and --process_id (from 0)."
        ) from error


def keep_compiled(folder: Path) -> None:
    """Keeps compiled programs in a folder for later runs; of CPUs, in one for each host.

    JAX_COMPILATION_CACHE_DIR names another one.
    """
    if jax.config.jax_compilation_cache_dir is None:
        folder = folder / platform.node() if jax.default_backend() == "cpu" else folder
        jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))


def is_first() -> bool:
    """Whether this process writes logs."""
    return jax.process_index() == 0


def total(number: float) -> float:
    """Sum of a number over the processes; all of them must call it at the same step."""
    if jax.process_count() == 1:
        return number
    return type(number)(np.sum(multihost_utils.process_allgather(np.asarray(number))))


def together(texts: list[str]) -> list[str]:
    """The texts of all processes, in their order; all of them must call it at the same step."""
    if jax.process_count() == 1:
        return texts
    own = np.frombuffer("\n".join(texts).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.asarray(len(own)))
    padded = np.pad(own, (0, int(sizes.max()) - len(own)))
    rows = np.asarray(multihost_utils.process_allgather(padded))
    joined = [bytes(row[:size]).decode() for row, size in zip(rows, sizes, strict=True)]
    return [text for text in "\n".join(joined).split("\n") if text]


def wait_for_all(name: str) -> None:
    """Waits until every process is here: some compile longer than a collective would wait."""
    multihost.get_barrier_sync_fn()(key=name, timeout_ms=_BARRIER_SECONDS * 1000)


class StopSignals:
    """While entered, SIGTERM and SIGINT end the run after an update instead of the process.

    Of several processes one needs the signal: jax passes it on, and they agree on the update.
    """

    def __enter__(self) -> "StopSignals":
        self._event, self._previous = threading.Event(), {}
        alone = jax.process_count() == 1

        def handle(number, _):
            _LOG.warning("%s: saving after this update", signal.Signals(number).name)
            if alone:
                self._event.set()
            else:
                os.kill(os.getpid(), signal.SIGTERM)

        # jax.distributed catches SIGTERM, below Python
        numbers = (signal.SIGTERM, signal.SIGINT) if alone else (signal.SIGINT,)
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, handle) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def is_set(self, step: int) -> bool:
        """Whether to stop now; every process calls it once an update."""
        if jax.process_count() == 1:
            return self._event.is_set()
        return multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Ends this process, with exit code 1, when one of the others is gone.

    XLA's transport fails then. Ending in order would wait for the one that is gone.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        if jax.process_count() == 1 or not _is_of_transport(error):
            raise
        first = (str(error).strip() or repr(error)).splitlines()[0][:300]
        _LOG.error(
            "error: process %d of %d cannot reach the others: one of them has ended; its own "
            "output says why (%s).\nStart the job again: it goes on from the last checkpoint.",
            jax.process_index(),
            jax.process_count(),
            first,
        )
        logging.shutdown()
        os._exit(1)


def _is_of_transport(error: Exception) -> bool:
    words = ("gloo", "nccl", "connection", "socket", "unavailable", "aborted", "heartbeat")
    return any(word in str(error).lower() for word in words)
