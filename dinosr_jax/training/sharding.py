"""The mesh, and where every array lives on it. Nothing else knows of PartitionSpec."""

import collections
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dinosr_jax.errors import UserError
from dinosr_jax.model.layers import traced_on
from dinosr_jax.training.state import Batch

DEVICE_PREFETCH = 2  # batches
# Axes of the mesh: 'data' cuts the batch; 'fsdp' cuts the batch and the state; 'tensor' cuts heads,
# feed-forward and codewords. First match wins: end of a leaf's path in the TrainState -> its axes.
# Parameters, teacher and the moments of Adam end in the same names. The first axis of
# `encoder/layers` is the layer, of `heads` and `codebook` the codebook.
AXES = ("data", "fsdp", "tensor")
RULES: tuple[tuple[str, P], ...] = (
    (r"layers/attention/(query|key|value)/kernel", P(None, "fsdp", "tensor")),
    (r"layers/attention/(query|key|value)/bias", P(None, "tensor")),
    (r"layers/attention/output/kernel", P(None, "tensor", "fsdp")),
    (r"layers/ffn_in/kernel", P(None, "fsdp", "tensor")),
    (r"layers/ffn_in/bias", P(None, "tensor")),
    (r"layers/ffn_out/kernel", P(None, "tensor", "fsdp")),
    (r"pos_conv/kernel", P(None, None, None, "fsdp")),
    (r"feature_encoder/conv_\d+/kernel", P(None, None, "fsdp")),
    (r"feature_projection/linear/kernel", P("fsdp", None)),
    (r"heads/kernel", P(None, "fsdp", "tensor")),
    (r"heads/bias", P(None, "tensor")),
    (r"codebook/sums", P(None, "tensor", "fsdp")),
    (r"codebook/counts", P(None, "tensor")),
    (r".*", P()),  # norms, other biases, counters: small
)
BATCH = P(("data", "fsdp"))
# Name of an activation's axis (`layers.place`), and axes of the mesh: flax's logical axis rules.
ACTIVATIONS = (
    ("batch", BATCH[0]),
    ("heads", "tensor"),
    ("ffn", "tensor"),
    ("codewords", "tensor"),
)


class MeshError(UserError):
    """Devices or batches do not fit `config.mesh`; the message says what to change."""


def make_mesh(config: Any, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a configuration over the first of some devices, or of all that jax has.

    Raises:
      MeshError: There are not as many devices, or batches cannot be cut by them.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.mesh[axis] for axis in AXES]
    given = math.prod(size for size in sizes if size != -1)
    sizes = [len(devices) // given if size == -1 else size for size in sizes]
    count = math.prod(sizes)
    if not 0 < count <= len(devices):
        given = ", ".join(f"{axis} {config.mesh[axis]}" for axis in AXES)
        raise MeshError(
            f"config.mesh: found {given}; expected sizes whose product is 1 to {len(devices)}, "
            "the number of devices, or -1 for one of them"
        )
    if jax.process_count() > 1 and count != len(devices):
        raise MeshError(
            f"config.mesh: {count} of {len(devices)} devices; expected all of them where several "
            "processes train together"
        )
    parts, accumulation = sizes[0] * sizes[1], config.optimizer.accumulation_steps
    if config.data.batch_multiple % (parts * accumulation):
        micro = f" in {accumulation} micro-batches" if accumulation > 1 else ""
        raise MeshError(
            f"config.data.batch_multiple: {config.data.batch_multiple} utterances cannot be dealt "
            f"to the {parts} devices of the mesh's data and fsdp axes{micro}; set it to a multiple "
            f"of {parts * accumulation}"
        )
    kinds = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(sizes, AXES, axis_types=kinds, devices=devices[:count])


def state_shardings(mesh: Mesh, abstract_state: Any) -> Any:
    """Sharding of every leaf of a state, by `RULES`; an axis that does not divide is not cut."""

    def match(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = next(spec for pattern, spec in RULES if re.fullmatch(f"(.*/)?{pattern}", name))
        divides = lambda size, axis: axis is not None and size % mesh.shape[axis] == 0
        axes = [axis if divides(leaf.shape[i], axis) else None for i, axis in enumerate(spec)]
        return NamedSharding(mesh, P(*axes))

    return jax.tree_util.tree_map_with_path(match, abstract_state)


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of metrics and other small results."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of every array of a batch."""
    return NamedSharding(mesh, BATCH)


def local_share(mesh: Mesh) -> tuple[int, int, int]:
    """(first, last, parts): this process reads rows first / parts to last / parts of a batch."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    cuts = batch_sharding(mesh).addressable_devices_indices_map((parts,)).values()
    bounds = [cut.indices(parts) for (cut,) in cuts]
    return min(bound[0] for bound in bounds), max(bound[1] for bound in bounds), parts


def shard_batch(mesh: Mesh, waveforms: np.ndarray, **others: np.ndarray) -> Batch:
    """Puts the rows [rows, ...] that this process read on its devices; fields of a `Batch`."""
    first, last, parts = local_share(mesh)
    where = batch_sharding(mesh)

    def put(local: np.ndarray) -> jax.Array:
        shape = (len(local) * parts // (last - first), *local.shape[1:])
        return jax.make_array_from_process_local_data(where, local, shape)

    return Batch(put(waveforms), **{name: put(local) for name, local in others.items()})


def to_devices(
    mesh: Mesh, batches: Iterable[Any], fields: Callable[[Any], dict[str, np.ndarray]]
) -> Iterator[tuple[Any, Batch]]:
    """Yields what this process read with its `Batch`, whose transfer began one batch before.

    `fields` gives the arrays of a batch that go to the devices, by the names of `Batch`.
    """
    queue: collections.deque = collections.deque()
    for read in batches:
        queue.append((read, shard_batch(mesh, **fields(read))))
        if len(queue) >= DEVICE_PREFETCH:
            yield queue.popleft()
    yield from queue


def make_state(mesh: Mesh, init: Callable[[], Any]) -> tuple[Any, Any]:
    """The abstract state of `init` with its shardings, and a function that makes it on the mesh."""
    abstract = jax.eval_shape(init)
    shardings = state_shardings(mesh, abstract)
    place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
    return jax.tree.map(place, abstract, shardings), jax.jit(init, out_shardings=shardings)


def make_local_state(init: Callable[[], Any]) -> Any:
    """The abstract state on the first device alone, to read a checkpoint of any mesh into."""
    device = np.asarray(jax.local_devices()[:1]).reshape(1, 1, 1)
    return make_state(Mesh(device, AXES), init)[0]


def jit_train_step(mesh: Mesh, train_step: Callable, abstract_state: Any) -> Callable:
    """Compiles an update: state by `RULES` and donated, batch cut, metrics replicated."""
    shardings = state_shardings(mesh, abstract_state)
    return jax.jit(
        _on(mesh, train_step),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )


def jit_eval_step(
    mesh: Mesh,
    step: Callable,
    abstract_state: Any,
    *,
    numbers: int = 0,
    results: Literal["sums", "rows"] = "sums",
) -> Callable:
    """Compiles step(state, batch, *numbers); the state is left alone, 'rows' stay cut."""
    cut, whole = batch_sharding(mesh), replicated(mesh)
    arguments = (state_shardings(mesh, abstract_state), cut, *(whole,) * numbers)
    out = cut if results == "rows" else whole
    return jax.jit(_on(mesh, step), in_shardings=arguments, out_shardings=out)


def local_rows(array: jax.Array) -> np.ndarray:
    """The rows of a cut array that this process has, in order."""
    rows = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(rows[first]) for first in sorted(rows)])


def place_like(values: Any, abstract: Any) -> Any:
    """Arrays of the host, the same in every process, on the mesh as an abstract tree says."""

    def place(value: Any, like: jax.ShapeDtypeStruct) -> jax.Array:
        host = np.asarray(value, like.dtype)
        cut = lambda index: host[index].copy()  # own the buffers: the state is donated
        return jax.make_array_from_callback(host.shape, like.sharding, cut)

    return jax.tree.map(place, values, abstract)


def _on(mesh: Mesh, step: Callable) -> Callable:
    """The same function, traced for the mesh, with its activations cut by their axes.

    XLA alone would cut activations like the parameters, and exchange them in place of these.
    """

    @functools.wraps(step)
    def traced(*arguments):
        with traced_on(mesh, ACTIVATIONS):
            return step(*arguments)

    return traced


def local_mesh() -> Mesh:
    """All devices of this process along 'data': each computes its own rows of a batch."""
    devices = np.asarray(jax.local_devices()).reshape(-1, 1, 1)
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def jit_inference(mesh: Mesh, function: Callable) -> Callable:
    """Compiles function(parameters, *batch): parameters whole everywhere, the batch cut."""
    everywhere, cut = replicated(mesh), batch_sharding(mesh)
    traced = _on(mesh, lambda params, batch: function(params, *batch))
    return jax.jit(traced, in_shardings=(everywhere, cut), out_shardings=cut)
