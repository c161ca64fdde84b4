"""Checkpoints of a run: state, configuration and data position, written by orbax.

A step is written to a temporary folder and renamed when it is complete: a kill at any moment leaves
the last complete checkpoint whole.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint.checkpoint_managers import preservation_policy

from dinosr_jax import files
from dinosr_jax.config import differences
from dinosr_jax.recipes import FIELDS
from dinosr_jax.training import processes
from dinosr_jax.training.damage import CheckpointError, first_line, read_together

_LOG = logging.getLogger(__name__)

IMPORTED = "imported"  # data fingerprint of a checkpoint that came from elsewhere


class Restored(NamedTuple):
    """A checkpoint as it was read."""

    step: int
    state: Any
    config: dict[str, Any]
    data: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, under `directory`.

    Saves asynchronously; keeps the last `keep` and every `keep_every`-th step (0: no other).
    `read_only` leaves the folder alone, also where a training run writes into it meanwhile.
    """

    def __init__(
        self, directory: Path, *, keep: int = 1, keep_every: int = 0, read_only: bool = False
    ):
        self.directory = Path(directory).absolute()
        self._read_only = read_only
        policies: list[Any] = [preservation_policy.LatestN(keep)]
        if keep_every:
            policies.append(preservation_policy.EveryNSteps(keep_every))
        self._options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._sync),
        )
        self._manager = None if read_only else self._open()  # orbax's warns where it is read-only

    def _open(self) -> ocp.CheckpointManager:
        try:
            return ocp.CheckpointManager(
                self.directory, options=self._options, item_names=("state", "config", "data")
            )
        except OSError as error:
            raise CheckpointError(f"cannot open {self.directory}: {error}") from error

    def _sync(self) -> None:
        """Syncs what is written before it gets its name: orbax syncs arrays alone."""
        for folder in self.directory.glob("*.orbax-checkpoint-tmp*"):
            files.sync_tree(folder)

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, oldest first."""
        return sorted(self._manager.all_steps()) if self._manager else self._steps_on_disk()

    def newest_data(self) -> dict[str, Any] | None:
        """The `data` of the newest checkpoint that is not damaged, or None."""
        for step in reversed(self._steps_together()):
            data = read_together(self.directory / str(step), lambda f: _read_json(f / "data"))
            if data is not None:
                return data
        return None

    def save(self, step: int, state: Any, *, config: dict[str, Any], data: dict[str, Any]) -> None:
        """Starts to save; returns once the state is copied from the devices.

        Raises:
          CheckpointError: This save, or the one before it, could not be written.
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            config=ocp.args.JsonSave(config),
            data=ocp.args.JsonSave(data),
        )
        with self._saving(step):
            self._manager.save(step, args=args, force=True)

    def wait(self) -> None:
        """Waits until everything is on disk; raises CheckpointError where it could not be."""
        with self._saving():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        """Ends the saves in progress, and the manager; errors as of `wait`."""
        if self._manager is not None:
            with self._saving():
                self._manager.close()

    @contextlib.contextmanager
    def _saving(self, step: int | None = None) -> Iterator[None]:
        """Raises CheckpointError for whatever the file system or tensorstore raise."""
        try:
            yield
        except Exception as error:
            complete = [s for s in self._steps_on_disk() if s != step]
            kept = f"step {complete[-1]} is complete" if complete else "no checkpoint is complete"
            free = shutil.disk_usage(self.directory).free / 2**20
            raise CheckpointError(
                f"saving a checkpoint into {self.directory} failed ({free:,.0f} MB free there): "
                f"{first_line(error)}\nNothing older was touched: {kept}. Free or repair the disk "
                "and run the same command again to go on from there."
            ) from error

    def _steps_on_disk(self) -> list[int]:
        """Steps whose folder has its final name on disk, oldest first."""
        names = os.listdir(self.directory) if self.directory.exists() else ()
        return sorted(int(name) for name in names if name.isdigit())

    def restore_latest(
        self, abstract_state: Any, *, check: Any = None, step: int | None = None
    ) -> Restored | None:
        """Reads the newest checkpoint that is whole.

        A damaged one is named in a warning, and moved to `damaged-STEP` once one before it has been
        read (unless read_only): where none can be read, all stay where they are.

        Args:
          abstract_state: Shapes, types and shardings of the state.
          check: Called with the checkpoint's config and data before its state is read; raises if
            they do not fit.
          step: Read this one and no other; None reads the newest.

        Returns:
          The checkpoint, the same in all processes, or None where the run has none.

        Raises:
          CheckpointError: There are checkpoints, and all are damaged; or one of the processes
            cannot read one, and it is not damaged.
        """
        steps, damaged = [s for s in self._steps_together() if step in (None, s)], []
        describe = lambda folder: [_read_json(folder / item) for item in ("config", "data")]
        for step in reversed(steps):
            folder, state = self.directory / str(step), None
            if (about := read_together(folder, describe)) is not None:
                if check is not None:
                    check(*about)
                state = read_together(folder, lambda f: _read_state(f / "state", abstract_state))
            if state is not None:
                self._move_aside(damaged)
                return Restored(step, state, *about)
            damaged.append(step)
        if steps:
            raise CheckpointError(
                f"none of the {len(steps)} checkpoints in {self.directory} can be read; see above. "
                "All were left as they are. Put a whole one back, or start anew with another "
                "--workdir."
            )
        return None

    def _steps_together(self) -> list[int]:
        """The steps that the first process sees, in all of them."""
        return json.loads(processes.together([json.dumps(self.steps())])[0])

    def _move_aside(self, steps: list[int]) -> None:
        if self._read_only or not steps:
            return
        for step in steps if processes.is_first() else ():
            target = self.directory / f"damaged-{step}"
            while target.exists():  # of an earlier time: nothing is overwritten
                target = target.with_name(f"{target.name}-again")
            (self.directory / str(step)).rename(target)
            _LOG.warning("it was moved to %s; the one before it is used", target.name)
        processes.wait_for_all("damaged checkpoints moved aside")
        self._manager.close()
        self._manager = self._open()


def _read_json(folder: Path) -> Any:
    return json.loads((folder / "metadata").read_text())


def _read_state(folder: Path, abstract_state: Any) -> Any:
    """The state in buffers of its own, which can be donated.

    In orbax's manager, other than in its handler, the processes wait for each other: one that
    cannot read would leave the others there.
    """
    handler = ocp.StandardCheckpointHandler()
    try:
        args = ocp.args.StandardRestore(abstract_state)
        return jax.tree.map(lambda x: x.copy(), handler.restore(epath.Path(folder), args=args))
    finally:
        handler.close()


def check_same_run(
    old: dict[str, Any], new: dict[str, Any], *, old_data: dict, new_data: dict, where: Path
) -> dict[str, tuple[Any, Any]]:
    """Refuses to go on from a checkpoint with a configuration that makes it another run.

    `old` and `new` are the configurations of the checkpoint and of this run, `old_data` and
    `new_data` have the `fingerprint` of their data; `where` is the folder, for the message. Returns
    the changed fields that may change: name -> (old, new).

    Raises:
      CheckpointError: Other fields differ, or the data does; all are named.
    """
    changed = differences(old, new)
    imported = old_data["fingerprint"] == IMPORTED
    if imported:
        _LOG.warning("the checkpoint was imported: it takes these data and this recipe")

    def may_change(name: str) -> bool:
        """Whether a field, or every field of a section, may."""
        fields = [f for n, f in FIELDS.items() if f"{n}.".startswith(f"{name}.")]
        return bool(fields) and all(f.may_change or (imported and not f.fixes) for f in fields)

    lines = [
        f"  config.{name}: the checkpoint has {before!r}, asked for is {after!r}"
        for name, (before, after) in changed.items()
        if not may_change(name)
    ]
    if not imported and old_data["fingerprint"] != new_data["fingerprint"]:
        lines.append(
            f"  the training data: the checkpoint saw {old_data['fingerprint']}, "
            f"config.data.data_dir now holds {new_data['fingerprint']}"
        )
    if lines:
        first = f"the run in {where} cannot go on with this configuration:"
        last = "Give it the old values, or choose another --workdir to start a new run."
        raise CheckpointError("\n".join([first, *lines, last]))
    return {name: values for name, values in changed.items() if name != "workdir"}
