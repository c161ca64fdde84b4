"""Span masks against a plain NumPy transcription of the paragraph in the paper's code."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinosr_jax.config import parse, published_recipe
from dinosr_jax.objective.masking import span_mask
from dinosr_jax.training import sharding
from dinosr_jax.training.state import Batch
from dinosr_jax.training.step import draw_mask

FRAMES_20_SECONDS = 999
SIZE, FRAMES = 400, 120  # one shape for most tests: each is compiled once


pytestmark = pytest.mark.usefixtures("compile_quickly")


@functools.cache
def jitted(frames, length, group_size, out_shardings=None):
    draw = functools.partial(span_mask, frames=frames, length=length, group_size=group_size)
    return jax.jit(
        lambda key, n, p, m: draw(key, n, prob=p, min_spans=m), out_shardings=out_shardings
    )


def draw(seed, num_frames, *, frames=FRAMES, prob=0.8, length=10, min_spans=1, same=False):
    """`same`: True for one group, or the size of the groups."""
    num_frames = jnp.asarray(num_frames, jnp.int32)
    group_size = len(num_frames) if same is True else same or None
    return np.asarray(
        jitted(frames, length, group_size)(jax.random.key(seed), num_frames, prob, min_spans)
    )


def numpy_spans(rng, num_frames, *, frames, prob=0.8, length=10, min_spans=1):
    masks = np.zeros((len(num_frames), frames), bool)
    for row, real in zip(masks, num_frames, strict=True):
        spans = max(int(np.floor(prob * real / length + rng.uniform())), min_spans)
        candidates = real - length if real - length > spans else spans + 1
        for start in rng.choice(candidates, spans, replace=False):
            row[start : min(start + length, real)] = True
    return masks


def numpy_same(rng, masks):
    masks = masks.copy()
    fewest = masks.sum(axis=1).min()
    for row in masks:
        masked = np.flatnonzero(row)
        row[rng.choice(masked, len(masked) - fewest, replace=False)] = False
    return masks


def runs(row):
    """Lengths of the runs of True."""
    edges = np.diff(np.concatenate([[0], row.astype(int), [0]]))
    return np.flatnonzero(edges == -1) - np.flatnonzero(edges == 1)


def test_number_of_masked_frames_on_20_seconds():
    real = [FRAMES_20_SECONDS] * 600
    found = draw(0, real, frames=FRAMES_20_SECONDS).sum(axis=1)
    rng = np.random.default_rng(0)
    expected = numpy_spans(rng, real, frames=FRAMES_20_SECONDS).sum(axis=1)
    assert 0.56 < expected.mean() / FRAMES_20_SECONDS < 0.575
    # 5 standard errors of the difference of two means are 3.7 frames; starts drawn with
    # replacement mask 20 frames less
    assert abs(found.mean() - expected.mean()) < 5 * expected.std() * np.sqrt(2 / 600)
    assert 0.85 < found.std() / expected.std() < 1.18
    np.testing.assert_allclose(
        np.quantile(found, [0.1, 0.9]), np.quantile(expected, [0.1, 0.9]), atol=6
    )


@pytest.mark.parametrize(
    ("rows", "seconds", "low", "high"),
    [
        pytest.param(12, 19.75, 0.520, 0.540, marks=pytest.mark.slow),
        (176, 19.75, 0.520, 0.540),
        pytest.param(304, 12.5, 0.505, 0.525, marks=pytest.mark.slow),
    ],
)
def test_share_of_masked_frames_is_that_of_the_official_batches_on_one_gpu(
    rows, seconds, low, high
):
    samples, frames = int(seconds * 16_000), int(seconds * 50) - 1
    config = parse(published_recipe())
    batch = Batch(jnp.zeros((rows, samples)))
    draw_batch = jax.jit(lambda key: draw_mask(config, batch, key, span_mask))
    group = 3_800_000 // samples  # max_tokens of a GPU
    found, expected = [], []
    rng = np.random.default_rng(1)
    for k in range(-(-5000 // rows)):
        mask = np.asarray(draw_batch(jax.random.key(k)))
        masks = numpy_spans(rng, [frames] * rows, frames=frames)
        groups = range(0, rows, group)
        for first in groups:
            assert len(set(mask[first : first + group].sum(axis=1))) == 1
            found.append(mask[first : first + group].mean())
            expected.append(numpy_same(rng, masks[first : first + group]).mean())
        assert rows == group or len(set(mask.sum(axis=1))) > 1
    assert low < np.mean(expected) < high
    error = 5 * np.std(expected) * np.sqrt(2 / len(expected))
    assert error < 0.01
    assert abs(np.mean(found) - np.mean(expected)) < error


def test_one_group_of_many_utterances_has_fewer_masked_frames():
    config = published_recipe()
    batch = Batch(jnp.zeros((176, 316_000)))
    share = lambda c: np.asarray(draw_mask(parse(c), batch, jax.random.key(0), span_mask)).mean()
    groups = share(config)
    config.mask.group_seconds = 0.0
    assert share(config) < groups - 0.01


def test_rows_that_fill_the_batch_do_not_count_in_their_group():
    real = [FRAMES] * 7 + [0]
    masks = draw(14, real, same=4)
    assert not masks[7].any() and masks[4:7].any(axis=1).all()
    np.testing.assert_array_equal(masks[:4].sum(axis=1), masks[0].sum())


def test_a_group_does_not_see_the_others():
    real = [FRAMES] * (SIZE - 1) + [12]
    masks = draw(15, real, same=40)
    counts = masks.sum(axis=1).reshape(-1, 40)
    assert (counts == counts[:, :1]).all() and counts[-1, 0] < 12 < counts[:-1].min()


def test_number_of_spans_without_replacement():
    # spans of one frame: as many masked frames as spans, if no start is drawn twice
    masks = np.concatenate([draw(k, [100] * SIZE, length=1, prob=0.797) for k in range(3)])
    counts = Counter(masks.sum(axis=1).tolist())
    assert set(counts) == {79, 80}
    assert abs(counts[80] / len(masks) - 0.7) < 5 * np.sqrt(0.7 * 0.3 / len(masks))
    assert not masks[:, 99].any()  # starts are less than num_frames - length


def test_every_frame_is_masked_as_often_as_in_numpy():
    real = [47] * SIZE
    found = np.concatenate([draw(k, real) for k in range(8)])
    rng = np.random.default_rng(3)
    expected = numpy_spans(rng, [47] * len(found), frames=FRAMES)
    error = 5 * np.sqrt(2 * 0.25 / len(found))
    np.testing.assert_allclose(found.mean(axis=0), expected.mean(axis=0), atol=error)


def test_masked_frames_are_whole_spans():
    for row in draw(4, [FRAMES] * SIZE, prob=0.2):
        lengths = runs(row)
        assert len(lengths) and (lengths >= 10).all()


def test_short_utterances():
    # every pattern that NumPy draws is drawn as often, and no other
    samples, lengths = 800, np.arange(1, 16)
    real = np.repeat(lengths, samples)
    found = draw(5, real, frames=15)
    expected = numpy_spans(np.random.default_rng(5), real, frames=15)
    for length in lengths:
        a = Counter(map(bytes, found[real == length]))
        b = Counter(map(bytes, expected[real == length]))
        assert a.keys() == b.keys(), length
        for pattern in a:
            assert abs(a[pattern] - b[pattern]) < 5 * np.sqrt(2 * 0.25 * samples), length


def test_shortest_batch_has_a_masked_frame():
    assert (draw(6, [2] * SIZE, frames=2, same=True).sum(axis=1) > 0).all()


@pytest.mark.parametrize("same", [False, True])
def test_padding_is_never_masked(same):
    real = np.array([120, 90, 37, 12] * (SIZE // 4))
    masks = draw(7, real, same=same)
    assert not masks[np.arange(FRAMES) >= real[:, None]].any()
    assert masks.any(axis=1).all()


def test_same_masks_equalises_and_only_removes():
    real = np.array([120, 90, 60, 75, 120, 119, 118, 40] * (SIZE // 8))
    loose = draw(8, real)
    even = draw(8, real, same=True)
    counts = loose.sum(axis=1)
    assert len(set(counts)) > 10
    assert set(even.sum(axis=1)) == {counts.min()}
    assert not (even & ~loose).any()


def test_the_surplus_is_dropped_at_random():
    real = [60] * (SIZE - 1) + [12]  # the short one has at most 11 masked frames
    loose, even = (draw(9, real, same=same)[:-1] for same in (False, True))
    kept = even.sum() / loose.sum()
    assert kept < 0.5 and len(set(even.sum(axis=1))) == 1
    for part in (slice(0, 16), slice(16, 33), slice(33, 59)):
        share = even[:, part].sum() / loose[:, part].sum()
        np.testing.assert_allclose(share, kept, rtol=0.1)


def test_min_spans_and_extreme_probabilities():
    real = [FRAMES] * SIZE
    assert not draw(10, real, prob=0.0, min_spans=0).any()
    assert all(runs(row).tolist() == [10] for row in draw(10, real, prob=0.0, min_spans=1))
    assert set(draw(10, real, prob=0.0, min_spans=7, length=1).sum(axis=1)) == {7}
    # as many spans as frames, and one start more than spans
    assert set(draw(10, real, prob=1.0, length=1).sum(axis=1)) <= {FRAMES - 1, FRAMES}
    assert 0.5 < draw(10, real, prob=1.0).mean() < 0.75


def test_the_key_decides():
    real = [100, 80, 60, 40] * (SIZE // 4)
    first = draw(11, real)
    np.testing.assert_array_equal(first, draw(11, real))
    assert (first != draw(12, real)).any()
    # without jit
    key, settings = jax.random.key(11), {"frames": FRAMES, "prob": 0.8, "length": 10}
    eager = span_mask(key, jnp.asarray(real), **settings, min_spans=1, group_size=None)
    np.testing.assert_array_equal(first, eager)
    assert eager.dtype == bool


def test_the_mesh_does_not_matter():
    cut = sharding.batch_sharding(sharding.make_mesh(parse(published_recipe())))
    real = jnp.arange(SIZE, dtype=jnp.int32) % 70 + 50
    on_mesh = jitted(FRAMES, 10, 30, out_shardings=cut)  # no multiple of a device's rows
    found = on_mesh(jax.random.key(13), jax.device_put(real, cut), 0.8, 1)
    assert len(found.sharding.device_set) == 8
    assert {shard.data.shape for shard in found.addressable_shards} == {(SIZE // 8, FRAMES)}
    np.testing.assert_array_equal(found, draw(13, real, same=30))
