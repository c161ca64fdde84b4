"""ABX: are two stretches of the same phone closer to each other than to one of another phone?

A cell has two sets of items, A and X of one phone and B of another, in the same context, or in any;
A and B are of one speaker, X of the same (within) or of another (across). Its error is how often an
X is closer to a B than to an A, ties counting half. The errors of cells are averaged over contexts,
then over speakers, then over pairs of phones: ZeroSpeech 2021's task, in the form of fastabx 0.9.

Shapes: n items, G groups of items, C cells, K blocks of distances between two groups.
"""

import dataclasses
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import numpy as np

from dinosr_jax.errors import UserError
from dinosr_jax.evaluation.abx import dtw
from dinosr_jax.evaluation.abx.distances import Distance
from dinosr_jax.evaluation.abx.item_features import End, Gathered
from dinosr_jax.evaluation.abx.items import Items

Speaker = Literal["within", "across"]
Context = Literal["triphone", "any"]
_CHUNK = 4_000_000  # distances of cells that are held at a time


class AbxError(UserError):
    """There is nothing to be compared; the message says why."""


class Caps(NamedTuple):
    """How much of a corpus is compared: ZeroSpeech's 10 and 5; None is all.

    At most `max_size_group` items of a phone, speaker and context, and for every A and B X of at
    most `max_x_across` other speakers, drawn at random with `seed`.
    """

    max_size_group: int | None = 10
    max_x_across: int | None = 5
    seed: int = 0


class AbxScore(NamedTuple):
    """Error from 0 to 1 (chance is 0.5), and of how many cells and items."""

    error: float
    cells: int
    items: int


@dataclasses.dataclass(frozen=True)
class _Groups:
    """Items of one phone, speaker and context, side by side: [G] each, but `members`.

    `members` [n] are the items, group by group; group g has `sizes[g]` from `starts[g]` on. Groups
    are in the order of context, speaker, phone.
    """

    context: np.ndarray
    speaker: np.ndarray
    phone: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    members: np.ndarray


class _Cells(NamedTuple):
    """Groups of each cell, [C] each."""

    a: np.ndarray
    b: np.ndarray
    x: np.ndarray

    def take(self, which: Any) -> "_Cells":
        """Some of them."""
        return _Cells(*(column[which] for column in self))


def measure(
    gathered: Gathered,
    items: Items,
    *,
    speaker: Speaker,
    context: Context,
    distance: Distance,
    caps: Caps = Caps(),  # noqa: B008 (immutable)
    progress: Callable[[int, int], None] = lambda pairs, total: None,
) -> AbxScore:
    """Error of a representation.

    Args:
      gathered: Frames of the items, prepared for the distance.
      items: All items of the file; those in `gathered.kept` are used.
      speaker: 'within': A, B and X of one speaker; 'across': X of another.
      context: 'triphone': A, B and X between the same phones; 'any': wherever.
      distance: Between frames; 'angular' is ZeroSpeech's, 'identical' is for units.
      caps: What is drawn at random; where a cap does not bite nothing depends on the seed.
      progress: Called with the pairs that were compared since the last call, and their number.

    Raises:
      AbxError: The caps are too small, or the items make no cell.
    """
    for name in ("max_size_group", "max_x_across"):
        if (cap := getattr(caps, name)) is not None and cap < 2:
            raise AbxError(f"{name}: found {cap}, expected 2 or more, or none")
    random = np.random.default_rng(caps.seed)
    groups = _make_groups(items, gathered.kept, context, caps.max_size_group, random)
    cells = _cells_within(groups) if speaker == "within" else _cells_across(groups)
    if speaker == "across" and caps.max_x_across is not None:
        cells = _draw_x(cells, caps.max_x_across, random)
    if not len(cells.a):
        raise AbxError(
            f"the {len(gathered.kept)} items make no cell {speaker} speakers, {context} context: "
            "expected two phones of one speaker"
            + (" in the same context" if context == "triphone" else "")
            + (", one of them twice" if speaker == "within" else ", one of them of another speaker")
        )
    # neighbours in a group are compared, and are quickest so when they are neighbours
    gathered = gathered._replace(
        items=dtw.ItemFrames(*(column[groups.members] for column in gathered.items))
    )
    errors = _score(gathered, groups, cells, distance, progress)
    return AbxScore(_collapse(groups, cells, errors, context), len(cells.a), len(groups.members))


def _make_groups(
    items: Items,
    kept: np.ndarray,
    context: Context,
    max_size: int | None,
    random: np.random.Generator,
) -> _Groups:
    """Groups of at most `max_size` items."""
    code = lambda column: np.unique([column[i] for i in kept], return_inverse=True)[1]
    phone, speaker = code(items.phones), code(items.speakers)
    around = np.zeros(len(kept), np.int64)
    if context == "triphone":
        before, after = code(items.previous), code(items.following)
        around = before * (after.max() + 1) + after
    order = np.lexsort((random.random(len(kept)), phone, speaker, around))
    keys = np.stack([around, speaker, phone])[:, order]
    is_first = np.r_[True, (keys[:, 1:] != keys[:, :-1]).any(axis=0)]
    group = np.cumsum(is_first) - 1
    if max_size is not None:
        rank = np.arange(len(order)) - np.flatnonzero(is_first)[group]
        order, group = order[rank < max_size], group[rank < max_size]
    order = order[np.lexsort((order, group))]  # as in the file: the same without a cap or with one
    sizes = np.bincount(group)
    return _Groups(*keys[:, is_first], np.cumsum(sizes) - sizes, sizes, order)


def _runs(*keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First index and length of the run of equal keys that each entry is in; keys are sorted."""
    stacked = np.stack(keys)
    is_first = np.r_[True, (stacked[:, 1:] != stacked[:, :-1]).any(axis=0)]
    firsts, which = np.flatnonzero(is_first), np.cumsum(is_first) - 1
    return firsts[which], np.bincount(which)[which]


def _spread(firsts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each entry `counts` numbers from `firsts` on: the entry, and the number."""
    entry = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(entry)) - np.repeat(np.cumsum(counts) - counts, counts)
    return entry, firsts[entry] + within


def _cells_within(groups: _Groups) -> _Cells:
    """A and X are one group of two items at least, B another of its context and speaker."""
    a, b = _spread(*_runs(groups.context, groups.speaker))
    return _Cells(a, b, a).take((a != b) & (groups.sizes[a] >= 2))


def _cells_across(groups: _Groups) -> _Cells:
    """X is of A's phone and context, and of another speaker."""
    order = np.lexsort((groups.speaker, groups.phone, groups.context))
    entry, place = _spread(*_runs(groups.context[order], groups.phone[order]))
    a, x = order[entry], order[place]
    a, x = a[a != x], x[a != x]
    firsts, counts = _runs(groups.context, groups.speaker)
    entry, b = _spread(firsts[a], counts[a])
    a, x = a[entry], x[entry]
    cells = _Cells(a, b, x).take(a != b)
    return cells.take(np.lexsort((cells.b, cells.a, cells.x)))


def _draw_x(cells: _Cells, most: int, random: np.random.Generator) -> _Cells:
    """Keeps X of at most so many speakers for each A and B."""
    order = np.lexsort((random.random(len(cells.a)), cells.b, cells.a))
    if not len(order):
        return cells
    firsts, _ = _runs(cells.a[order], cells.b[order])
    kept = np.sort(order[np.arange(len(order)) - firsts < most])
    return cells.take(kept)


class _Blocks(NamedTuple):
    """Distances between all items of two groups, side by side: [K] each.

    `keys` are sorted, low group * G + high group; block k has low x high distances from
    `starts[k]` on.
    """

    keys: np.ndarray
    low: np.ndarray
    high: np.ndarray
    starts: np.ndarray
    total: int


def _blocks_of(groups: _Groups, cells: _Cells) -> _Blocks:
    count = len(groups.sizes)
    pairs = [np.stack([cells.x, other]) for other in (cells.a, cells.b)]
    low, high = np.sort(np.concatenate(pairs, axis=1), axis=0)
    keys = np.unique(low * count + high)
    low, high = np.divmod(keys, count)
    sizes = groups.sizes[low] * groups.sizes[high]
    return _Blocks(keys, low, high, np.cumsum(sizes) - sizes, int(sizes.sum()))


def _score(
    gathered: Gathered,
    groups: _Groups,
    cells: _Cells,
    distance: Distance,
    progress: Callable[[int, int], None],
) -> np.ndarray:
    """Error of each cell [C], a part of them at a time."""
    size = groups.sizes
    costs = np.cumsum(size[cells.x] * (size[cells.a] + size[cells.b]))
    parts = np.searchsorted(costs, np.arange(_CHUNK, costs[-1] + _CHUNK, _CHUNK), "right")
    parts = np.unique(np.r_[0, parts, len(cells.a)])
    slices = [slice(*part) for part in zip(parts[:-1], parts[1:], strict=True)]
    blocks = [_blocks_of(groups, cells.take(s)) for s in slices]
    total, same = sum(block.total for block in blocks), _same_items(gathered)
    errors = np.empty(len(cells.a))
    for part, block in zip(slices, blocks, strict=True):
        done = lambda pairs: progress(pairs, total)
        distances = _block_distances(gathered, groups, block, same, distance, done)
        errors[part] = _cell_errors(groups, cells.take(part), block, distances)
    return errors


def _same_items(gathered: Gathered) -> np.ndarray:
    """[n]: the first item that has the same frames, so that both have the same distances."""
    ids, (starts, lengths) = gathered.frames.ids, gathered.items
    seen: dict[bytes, int] = {}
    slices = zip(starts.tolist(), lengths.tolist(), strict=True)
    first = [seen.setdefault(ids[at : at + n].tobytes(), i) for i, (at, n) in enumerate(slices)]
    return np.asarray(first)


def _block_distances(
    gathered: Gathered,
    groups: _Groups,
    blocks: _Blocks,
    same: np.ndarray,
    distance: Distance,
    progress: Callable[[int], None],
) -> np.ndarray:
    """Distances low against high, then high against low: [2 * total] float32.

    A pair is compared once, and gives both; an item is not compared with itself.
    """
    high_sizes = groups.sizes[blocks.high]
    block, place = _spread(blocks.starts, groups.sizes[blocks.low] * high_sizes)
    row, column = np.divmod(place - blocks.starts[block], high_sizes[block])
    one_group = (blocks.low == blocks.high)[block]
    needed = ~one_group | (row < column)
    mirror = (blocks.starts[block] + column * high_sizes[block] + row)[one_group & needed]
    first = same[(groups.starts[blocks.low][block] + row)[needed]]
    second = same[(groups.starts[blocks.high][block] + column)[needed]]
    progress(int(np.count_nonzero(~needed)))
    swapped = first > second
    first, second = np.where(swapped, second, first), np.where(swapped, first, second)
    compare = lambda one, other: dtw.pair_distances(
        gathered.frames, gathered.items, one, other, distance=distance, progress=progress
    )
    if (same == np.arange(len(same))).all():
        forward, backward = compare(first, second)
    else:  # some items are equal: every distance once, for exact ties
        keys, which = np.unique(first * len(same) + second, return_inverse=True)
        progress(len(first) - len(keys))
        forward, backward = (values[which] for values in compare(*np.divmod(keys, len(same))))
    forward, backward = (
        np.where(swapped, backward, forward),
        np.where(swapped, forward, backward),
    )
    both = np.full((2, blocks.total), np.nan, np.float32)
    both[0, place[needed]], both[1, place[needed]] = forward, backward
    both[0, mirror] = backward[one_group[needed]]
    return both.reshape(-1)


def _cell_errors(
    groups: _Groups, cells: _Cells, blocks: _Blocks, distances: np.ndarray
) -> np.ndarray:
    """How often an X is closer to a B than to an A, [C]; by one search for all cells."""
    count, sizes = len(groups.sizes), groups.sizes
    order = np.lexsort((cells.b, cells.a, cells.x))
    cells = cells.take(order)
    # cells of the same X and A follow each other, and share the rows of an x and all its a
    is_first = np.r_[True, (np.diff(cells.x) != 0) | (np.diff(cells.a) != 0)]
    shared = np.cumsum(is_first) - 1
    x, a = cells.x[is_first], cells.a[is_first]
    first_row = np.cumsum(sizes[x]) - sizes[x]

    def look_up(x: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, ...]:
        """Of all items of X and of the other group: the entry, their places, the distance."""
        low, high = np.minimum(x, other), np.maximum(x, other)
        block = np.searchsorted(blocks.keys, low * count + high)
        entry, place = _spread(np.zeros(len(x), np.int64), sizes[x] * sizes[other])
        of_x, of_other = np.divmod(place, sizes[other][entry])
        x_is_low = (x == low)[entry]
        row, column = np.where(x_is_low, (of_x, of_other), (of_other, of_x))
        at = blocks.starts[block][entry] + row * sizes[high][entry] + column
        return entry, of_x, of_other, distances[at + np.where(x_is_low, 0, blocks.total)]

    entry, of_x, of_a, near = look_up(x, a)
    other = (x != a)[entry] | (of_x != of_a)  # an item is no A of itself
    near = np.sort(_keys((first_row[entry] + of_x)[other], near[other]))
    entry, of_x, _, far = look_up(cells.x, cells.b)
    row = first_row[shared[entry]] + of_x
    keys = _keys(row, far)
    begins = np.searchsorted(near, row << 32)
    below = np.searchsorted(near, keys, "left") - begins
    ties = np.searchsorted(near, keys, "right") - begins - below
    right = np.bincount(entry, below + 0.5 * ties, minlength=len(cells.a))
    triples = sizes[cells.x] * (sizes[cells.a] - (cells.x == cells.a)) * sizes[cells.b]
    errors = np.empty(len(order))
    errors[order] = 1 - right / triples
    return errors


def _keys(rows: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Whole numbers in the order of rows, then of distances (float32)."""
    bits = (distances + np.float32(0)).view(np.int32).astype(np.int64)  # + 0: -0 is 0
    bits = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    return (rows.astype(np.int64) << 32) + bits + 2**31


def _collapse(groups: _Groups, cells: _Cells, errors: np.ndarray, context: Context) -> float:
    """The mean over contexts and speakers of X, then over speakers, then over pairs of phones."""
    phones, speakers = groups.phone.max() + 1, groups.speaker.max() + 1
    pair = groups.phone[cells.a] * phones + groups.phone[cells.b]
    if context == "triphone":
        keys, errors = _means(pair * speakers + groups.speaker[cells.a], errors)
        pair = keys // speakers
    return float(_means(pair, errors)[1].mean())


def _means(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    unique, which = np.unique(keys, return_inverse=True)
    return unique, np.bincount(which, values) / np.bincount(which)


def to_table(rows: Sequence[dict]) -> str:
    """Errors in percent, one line a row of the results."""
    title = f"{'layer':>8}  {'speakers':8}  {'context':8}  {'error':>7}  {'cells':>9}  {'items':>8}"
    lines = [
        f"{'-' if row['layer'] is None else row['layer']:>8}  {row['speaker']:8}  "
        f"{row['context']:8}  {row['error']:>6.2%}  {row['cells']:>9,}  {row['items']:>8,}"
        for row in rows
    ]
    return "\n".join([title, *lines])


def to_rule(frame_rate: Fraction, distance: Distance, caps: Caps, *, end: End) -> str:
    """How items are cut out and compared, in one line."""
    most = lambda cap, what: f"{'all' if cap is None else f'at most {cap}'} {what}"
    drawn = f", seed {caps.seed}" if caps[:2] != (None, None) else ""
    padded = "; the last frame repeated where it is missing" if end == "repeat" else ""
    return (
        f"frames whose centre (i + 0.5) / {float(frame_rate):g} s is in the item{padded}; "
        f"{distance} distance, warped, divided by the length of the path; "
        f"{most(caps.max_size_group, 'A, B and X')}, {most(caps.max_x_across, 'speakers of X')}"
        f"{drawn}"
    )
