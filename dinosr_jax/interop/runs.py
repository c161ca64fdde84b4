"""Runs of ours: made of an imported checkpoint, and read to be exported."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dinosr_jax import files
from dinosr_jax.config import parse, to_text
from dinosr_jax.interop import fairseq
from dinosr_jax.interop.formats import Choices, Imported, InteropError, at_step, read_checkpoint
from dinosr_jax.interop.shapes import ASSUMED
from dinosr_jax.training.checkpoint import IMPORTED, CheckpointError, Checkpoints, Restored
from dinosr_jax.training.optimizer import make_optimizer
from dinosr_jax.training.sharding import make_local_state
from dinosr_jax.training.state import init_state

_CONFIG = '''"""The configuration of this run, of its config.json, for main.py --config."""

import json
from pathlib import Path

from ml_collections import ConfigDict

from dinosr_jax.config import parse


def get_config():
    """The configuration, with every field."""
    text = (Path(__file__).parent / "config.json").read_text()
    return ConfigDict(parse(json.loads(text)).to_dict())
'''


@contextmanager
def written_whole(output: Path) -> Iterator[Path]:
    """A temporary folder to write into, which becomes `output` when all is written.

    It is removed where something fails; so is what a killed process left of one: a process holds a
    lock on its own.

    Raises:
      InteropError: There is something already that is no empty folder.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InteropError(f"{output} is there already, and not empty; choose another --output")
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    parent = output.absolute().parent
    prefix = f".{output.name}.partial-"
    for left in [path for path in parent.iterdir() if path.name.startswith(prefix)]:
        if (lock := _lock(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    lock = _lock(folder)
    try:
        yield folder
        umask = os.umask(0)
        os.umask(umask)
        for path in (folder, *folder.rglob("*")):  # safetensors' files are their owner's alone
            path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
        files.sync_tree(folder)
        folder.replace(output.absolute())
        files.sync_folder(parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """A descriptor that locks a folder until it is closed; None where it cannot be had."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        locked = files.lock(descriptor, name=folder)
    except BlockingIOError:
        locked = False
    if not locked:
        os.close(descriptor)
        return None
    return descriptor


def write_run(imported: Imported, output: Path, *, step: int | None = None) -> None:
    """Makes a run: configuration and one checkpoint, with a fresh optimizer.

    `step` are the finished updates; None is the checkpoint's number.

    Raises:
      InteropError: The folder is not empty.
      CheckpointError: It cannot be written.
    """
    step = imported.step if step is None else step
    config = parse(imported.config.to_dict() | {"workdir": str(output)})
    data = {"fingerprint": IMPORTED, "next_step": step, "source": imported.source}
    if imported.data.get("fresh"):  # heads and codebooks, until it is trained on
        data["fresh"] = True
    data["assumed"] = [note for note in imported.notes if note.startswith(ASSUMED)]
    data["origin"] = imported.data.get("origin") or imported.data.get("fingerprint")
    with written_whole(output) as folder:
        checkpoints = Checkpoints(folder / "checkpoints")
        try:
            state = at_step(imported.state, step)
            checkpoints.save(step, state, config=config.to_dict(), data=data)
            checkpoints.wait()
        finally:
            checkpoints.close()
        (folder / "config.json").write_text(to_text(config) + "\n")
        (folder / "config.py").write_text(_CONFIG)


def restore(folder: Path, config: Any, *, step: int | None = None) -> Restored:
    """Reads a checkpoint of a run, None for the newest, onto the first device.

    Raises:
      CheckpointError: There is none that can be read, or its parameters are not finite.
    """
    optimizer = make_optimizer(config)
    abstract = make_local_state(lambda: init_state(config, optimizer=optimizer))
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        restored = checkpoints.restore_latest(abstract, step=step)
    finally:
        checkpoints.close()
    if restored is None:
        raise CheckpointError(f"{folder} has no complete checkpoint yet; train it further first")
    state = restored.state
    tensors = {"params": state.params, "teacher_params": state.teacher_params}
    tensors["codebook"] = state.codebook._asdict() if state.codebook else {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tensors):
        if wrong := fairseq.not_finite(np.asarray(leaf)):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise CheckpointError(
                f"{folder / str(restored.step)}: {name}: {wrong}: the checkpoint is damaged, or "
                f"training diverged. Take an earlier one ({folder}/STEP)."
            )
    return restored


def checkpoints_of(workdir: Path, config: Any) -> Path:
    """The folder that a run is read from: of a recogniser that of its best, else of its last."""
    best = Path(workdir) / "best"
    has_best = config.task == "ctc" and any(path.name.isdigit() for path in best.glob("*"))
    return best if has_best else Path(workdir) / "checkpoints"


def step_folder(path: Path, config: Any, step: int) -> Path:
    """The folder of the checkpoint that `read` takes of a run; of anything else, `path`."""
    path = Path(path)
    return checkpoints_of(path, config) / str(step) if is_run(path) else path


def read(path: Path, *, heads: int | None = None) -> Imported:
    """Reads a run, one of its checkpoints, or a checkpoint of another project.

    Args:
      path: A workdir (its last checkpoint, of a recogniser its best), a step of one
        (workdir/checkpoints/STEP or workdir/best/STEP), or what `read_checkpoint` reads.
      heads: Attention heads of another project's checkpoint that does not have their number.

    Returns:
      As `read_checkpoint`; of a run, with its own optimizer state and data.

    Raises:
      InteropError: It is none of them.
      CheckpointError: The run has none that can be read.
    """
    path = Path(path)
    metadata = path / "config" / "metadata"
    if is_run(path):
        config, step = _read_config(path / "config.json"), None
        folder = checkpoints_of(path, config)
    elif path.absolute().name.isdigit() and metadata.is_file() and (path / "state").is_dir():
        config, step = _read_config(metadata), int(path.absolute().name)
        folder = path.absolute().parent
    else:
        return read_checkpoint(path, choices=Choices(heads=heads))
    restored = restore(folder, config, step=step)
    return Imported(config, restored.state, restored.step, "run", [], dict(restored.data))


def is_run(path: Path) -> bool:
    """Whether a folder is a workdir of main.py."""
    return (path / "checkpoints").is_dir() and (path / "config.json").is_file()


def _read_config(path: Path) -> Any:
    try:
        return parse(json.loads(path.read_text()))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as a configuration: {error}") from None


def read_any(path: Path, *, heads: int | None = None) -> Imported:
    """As `read`; of a run, `data` has its last `metrics`, too."""
    imported = read(path, heads=heads)
    if imported.source != "run":
        return imported
    workdir = Path(path) if is_run(Path(path)) else Path(path).absolute().parent.parent
    metrics = _last_metrics(workdir / "metrics.jsonl", imported.step)
    if imported.data.get("metrics"):  # those that made it the best
        metrics["held out"] = {"step": imported.step, **imported.data["metrics"]}
    return imported._replace(data=imported.data | {"metrics": metrics})


def _last_metrics(path: Path, step: int) -> dict[str, dict[str, Any]]:
    """The last records up to `step`: of training, and of the held-out split where there is one."""
    records: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # a line that a killed run did not finish
        if isinstance(record, dict) and record.get("step", 0) <= step:
            held_out = {k: v for k, v in record.items() if k.startswith("eval_")}
            records["training"] = {k: v for k, v in record.items() if k not in held_out}
            if "eval_loss" in record:
                records["held out"] = {"step": record.get("step"), **held_out}
    return records
