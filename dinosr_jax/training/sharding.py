"""The mesh, and where every array lives on it. Nothing else knows of PartitionSpec."""

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dinosr_jax.training.state import Batch

# First match wins: path of the leaf in the TrainState -> its axes. Data parallelism replicates
# the state; the batch is cut along its first axis.
RULES: tuple[tuple[str, P], ...] = ((r".*", P()),)
BATCH = P("data")


def make_mesh(config: Any) -> Mesh:
    """Mesh over the devices of a configuration.

    Args:
      config: Parsed configuration; `mesh.data` devices, or all with -1.

    Returns:
      Mesh with the axis 'data'.

    Raises:
      ValueError: There are not as many devices, or batches cannot be cut by them.
    """
    devices = jax.devices()
    count = len(devices) if config.mesh.data == -1 else config.mesh.data
    if not 0 < count <= len(devices):
        found = f"found {count}, expected 1 to {len(devices)}, the devices of this machine, or -1"
        raise ValueError(f"config.mesh.data: {found}")
    multiple = config.data.batch_multiple
    if multiple % count:
        hint = f"set it to a multiple of {count}, or config.mesh.data to a divisor of {multiple}"
        raise ValueError(
            f"config.data.batch_multiple: {multiple} utterances cannot be dealt to the {count} "
            f"devices of the mesh; {hint}"
        )
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:count])


def state_shardings(mesh: Mesh, abstract_state: Any) -> Any:
    """Sharding of every leaf of a state, by `RULES`."""

    def match(path, _):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = next(spec for pattern, spec in RULES if re.fullmatch(pattern, name))
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(match, abstract_state)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of metrics and other small results."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of every array of a batch."""
    return NamedSharding(mesh, BATCH)


def shard_batch(mesh: Mesh, waveforms: np.ndarray) -> Batch:
    """Puts waveforms [B, S] on the devices, cut along the batch."""
    return Batch(jax.device_put(waveforms, batch_sharding(mesh)))


def make_state(mesh: Mesh, init: Callable[[], Any]) -> tuple[Any, Any]:
    """Shapes, and then arrays, of a state that is born on the mesh.

    Args:
      mesh: The mesh.
      init: Makes the state; traced.

    Returns:
      The abstract state with its shardings, and a function that makes the real one.
    """
    abstract = jax.eval_shape(init)
    shardings = state_shardings(mesh, abstract)
    place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
    return jax.tree.map(place, abstract, shardings), jax.jit(init, out_shardings=shardings)


def make_local_state(init: Callable[[], Any]) -> Any:
    """The abstract state on the first device alone, to read a checkpoint of any mesh into."""
    return make_state(Mesh(np.asarray(jax.devices()[:1]), ("data",)), init)[0]


def jit_train_step(mesh: Mesh, train_step: Callable, abstract_state: Any) -> Callable:
    """Compiles an update: state by `RULES` and donated, batch cut, metrics replicated."""
    shardings = state_shardings(mesh, abstract_state)
    return jax.jit(
        train_step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def jit_eval_step(mesh: Mesh, eval_step: Callable, abstract_state: Any) -> Callable:
    """Compiles an evaluation; the state is left alone."""
    shardings = (state_shardings(mesh, abstract_state), batch_sharding(mesh), replicated(mesh))
    return jax.jit(eval_step, in_shardings=shardings, out_shardings=replicated(mesh))
