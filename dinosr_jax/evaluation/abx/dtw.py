"""Dynamic time warping of many pairs of sequences, in a few calls of one compiled function.

The frames of the items are laid out in tiles of W frames; the distances between all frames of two
tiles are a table, and a pair of items is a rectangle of it. The same pair has the same distance
whatever the others are, and a frame is at distance 0 from one that is equal to it.

Shapes: P pairs, n items, F frames, E numbers a frame, B tables, W frames of a tile, T frames of the
longest item.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dinosr_jax.evaluation.abx.distances import Distance, Frames, between

MAX_FRAMES = 16_384  # of an item: two path lengths share 32 bits
_TILE = 128
_TABLE_BYTES = 2**24  # fits the caches of a CPU; small on any accelerator


class Distances(NamedTuple):
    """[P] each: rows against columns, and columns against rows.

    They differ where several paths cost the same: the shorter is not looked for, but a diagonal
    step is preferred, then one along the columns.
    """

    forward: np.ndarray
    backward: np.ndarray


@functools.partial(jax.jit, static_argnames=("stride", "longest"))
def align(
    table: jax.Array,
    first: jax.Array,
    num_rows: jax.Array,
    num_columns: jax.Array,
    *,
    stride: int,
    longest: int,
) -> tuple[jax.Array, jax.Array]:
    """Cost of the cheapest path through each rectangle, divided by how many frames it passes.

    `table` [M] are distances; row i of a pair starts at `first` [P] + i * stride. A rectangle has
    `num_rows` [P] and `num_columns` [P], up to `longest`. Returns [P] float32 for the rectangles,
    and [P] for their transposes. Of equal predecessors the diagonal comes first, then the one in
    the same row: fastabx' (torchdtw's) rule.
    """
    pairs = first.shape[0]
    infinite, none = jnp.full(pairs, jnp.inf), jnp.zeros(pairs, jnp.int32)
    buffers = jnp.full((longest + 1, pairs), jnp.inf), jnp.zeros((longest + 1, pairs), jnp.int32)

    def row(i, carry):
        above, finished = carry

        def column(j, carry):
            (costs, steps), left = carry
            at = lambda k: tuple(lax.dynamic_index_in_dim(a, k, 0, False) for a in above)
            here = table.at[first + (i * stride + j)].get(mode="clip")
            cost, length = _step(here, left=left, diagonal=at(j), up=at(j + 1))
            put = functools.partial(lax.dynamic_update_index_in_dim, index=j + 1, axis=0)
            return (put(costs, cost), put(steps, length)), (cost, length)

        below, _ = lax.fori_loop(0, num_columns.max(), column, (buffers, (infinite, none)))
        take = lambda a: jnp.take_along_axis(a, num_columns[None], 0)[0]
        ends = i == num_rows - 1
        finished = tuple(
            jnp.where(ends, take(new), old) for new, old in zip(below, finished, strict=True)
        )
        return below, finished

    start = buffers[0].at[0].set(0.0), buffers[1]
    _, (cost, lengths) = lax.fori_loop(0, num_rows.max(), row, (start, (infinite, none)))
    return cost / (lengths & 0xFFFF), cost / (lengths >> 16)


def _step(here, *, left, diagonal, up):
    """Cost and lengths of a cell; the lengths of the path and of the transpose's are packed."""
    (left_cost, left_length), (diagonal_cost, diagonal_length), (up_cost, up_length) = (
        left, diagonal, up,
    )  # fmt: skip
    # in the same row comes before in the same column; for the transpose it is the other way round
    tied = (left_length & 0xFFFF) | (up_length & ~0xFFFF)
    straight = jnp.where(up_cost < left_cost, up_length, tied)
    straight = jnp.where(left_cost < up_cost, left_length, straight)
    is_diagonal = (diagonal_cost <= left_cost) & (diagonal_cost <= up_cost)
    length = jnp.where(is_diagonal, diagonal_length, straight) + 0x10001
    return here + jnp.minimum(diagonal_cost, jnp.minimum(left_cost, up_cost)), length


@functools.partial(jax.jit, static_argnames=("distance",))
def _tables(
    frames: Frames, rows: jax.Array, columns: jax.Array, count: jax.Array, *, distance: Distance
) -> jax.Array:
    """Distances between the frames of `count` pairs of tiles [B, W], flat: [B * W * W]."""
    size, width = rows.shape

    def fill(b, tables):
        one = jax.tree.map(lambda a: a[rows[b]], frames)
        other = jax.tree.map(lambda a: a[columns[b]], frames)
        return lax.dynamic_update_index_in_dim(tables, between(one, other, distance), b, 0)

    return lax.fori_loop(0, count, fill, jnp.zeros((size, width, width))).reshape(-1)


class ItemFrames(NamedTuple):
    """Where the items are in the frames: starts and lengths [n], in frames."""

    starts: np.ndarray
    lengths: np.ndarray


def pair_distances(
    frames: Frames,
    items: ItemFrames,
    first: np.ndarray,
    second: np.ndarray,
    *,
    distance: Distance,
    progress: Callable[[int], None] = lambda pairs: None,
) -> Distances:
    """Distances of pairs of items: of `first` [P] (the rows) and `second` [P] (the columns).

    Args:
      frames: Of `distances.prepare`, joined; on a device, or not.
      items: Slices of the frames, 1 to `MAX_FRAMES` long.
      first: Items.
      second: Items.
      distance: Between frames.
      progress: Called with the number of pairs that were computed since the last call.

    Returns:
      [P] float32 either way.
    """
    distances = Distances(np.empty(len(first), np.float32), np.empty(len(first), np.float32))
    if not len(first):
        return distances
    frames = jax.device_put(frames)
    tiles = _Tiles(items, np.unique(np.concatenate([first, second])))
    keys, table_of = np.unique(
        tiles.of[first] * len(tiles.frames) + tiles.of[second], return_inverse=True
    )
    size = max(1, _TABLE_BYTES // (4 * tiles.width**2))
    lanes = _lanes(len(first))
    rows, columns = items.lengths[first], items.lengths[second]
    longest = -(-int(columns.max()) // 32) * 32
    order = np.lexsort((columns, rows // 2, table_of // size))
    ends = np.searchsorted(table_of[order] // size, np.arange(-(-len(keys) // size)), "right")
    for number, (begin, end) in enumerate(zip(np.r_[0, ends[:-1]], ends, strict=True)):
        chunk = np.resize(keys[number * size : (number + 1) * size], size)
        count = np.int32(min(size, len(keys) - number * size))
        index = [tiles.frames[at] for at in np.divmod(chunk, len(tiles.frames))]
        table, under_way = _tables(frames, *index, count, distance=distance), []
        for at in range(begin, end, lanes):
            pairs = order[at : min(at + lanes, end)]
            place = (table_of[pairs] % size) * tiles.width + tiles.at[first[pairs]]
            place = place * tiles.width + tiles.at[second[pairs]]
            given = (np.resize(a, lanes) for a in (place, rows[pairs], columns[pairs]))
            given = (a.astype(np.int32) for a in given)
            both = align(table, *given, stride=tiles.width, longest=longest)
            under_way.append((pairs, both))
        for pairs, both in under_way:
            for target, values in zip(distances, both, strict=True):
                target[pairs] = np.asarray(values)[: len(pairs)]
            progress(len(pairs))
    return distances


def _lanes(pairs: int) -> int:
    """Pairs of one call: as many as fill the vector units, and few that only fill up."""
    if jax.default_backend() == "cpu":
        return 512 if pairs < 100_000 else 2048
    return 4096 if pairs < 100_000 else 32_768


class _Tiles:
    """Items side by side in rows of W frames, in their order.

    `of` and `at` [n] are the tile of an item and its place there; `frames` [tiles, W] the indices
    of the frames.
    """

    def __init__(self, items: ItemFrames, used: np.ndarray):
        lengths = items.lengths[used]
        self.width = max(_TILE, -(-int(lengths.max()) // 64) * 64)
        ends, begin, tile = np.cumsum(lengths), 0, []
        while begin < len(used):
            room = self.width + (ends[begin - 1] if begin else 0)
            end = int(np.searchsorted(ends, room, "right"))
            tile += [len(tile) and tile[-1] + 1] * (end - begin)
            begin = end
        self.of, self.at = np.zeros((2, len(items.lengths)), np.int64)
        tile = np.asarray(tile)
        firsts = np.searchsorted(tile, tile)
        self.of[used] = tile
        self.at[used] = (ends - lengths) - (ends - lengths)[firsts]
        self.frames = np.zeros((tile[-1] + 1, self.width), np.int32)
        within = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        columns = np.repeat(self.at[used], lengths) + within
        self.frames[np.repeat(tile, lengths), columns] = (
            np.repeat(items.starts[used], lengths) + within
        )
