"""Perplexity, accuracy and position information against NumPy and hand-made cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinosr_jax.training.metrics import (
    count_table,
    loudness_bins,
    moments,
    norms,
    perplexity,
    position_bins,
    prediction_metrics,
    prediction_statistics,
    standard_deviations,
    table_metrics,
    to_record,
)

N, B, T, V, P = 2, 6, 47, 8, 7
statistics_of = jax.jit(prediction_statistics, static_argnames="bins")
metrics_of = jax.jit(prediction_metrics)


def entropy(counts):
    p = np.float64(counts).ravel() / np.sum(counts)
    return -sum(x * np.log2(x) for x in p if x > 0)


def numpy_metrics(logits, codes, mask):
    """One codebook: logits [B, T, V], codes [B, T], mask [B, T]."""
    x, c = np.float64(logits[mask]), codes[mask]
    x = x - x.max(axis=1, keepdims=True)
    softmax = np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)
    bins = np.broadcast_to(np.arange(mask.shape[1]) // 10, mask.shape)[mask]
    joint = np.zeros((P, x.shape[1]))
    for position, code in zip(bins, c, strict=True):
        joint[position, code] += 1
    shared = entropy(joint.sum(0)) + entropy(joint.sum(1)) - entropy(joint)
    return {
        "loss": -np.log(softmax[np.arange(len(c)), c]).mean(),
        "accuracy": (x.argmax(axis=1) == c).mean(),
        "top_code_share": np.bincount(c).max() / len(c),
        "target_perplexity": 2 ** entropy(np.bincount(c)),
        "prediction_perplexity": 2 ** entropy(softmax.mean(axis=0)),
        "codeword_use": len(set(c.tolist())) / x.shape[1],
        "position_information": shared / entropy(joint.sum(1)),
    }


def example(seed=0, batch=B):
    rng = np.random.default_rng(seed)
    logits = (3 * rng.normal(size=(N, batch, T, V))).astype(np.float32)
    codes = np.minimum(rng.geometric(0.35, size=(N, batch, T)) - 1, V - 2).astype(np.int32)
    codes[1] = (codes[1] + np.arange(T) // 20) % V  # follows the position somewhat
    return logits, codes, rng.random((batch, T)) < 0.4


def with_codes(codes, logits=None):
    """Metrics of one codebook of the given codes [B, T], every frame masked."""
    codes = np.asarray(codes, np.int32)[None]
    logits = np.zeros((*codes.shape, V), np.float32) if logits is None else logits
    mask = np.ones(codes.shape[1:], bool)
    found = metrics_of(statistics_of(logits, codes, mask, bins=P))
    return {name: float(value[0]) for name, value in found.items()}


def test_random_predictions():
    logits, codes, mask = example()
    found = metrics_of(statistics_of(logits, codes, mask, bins=P))
    for n in range(N):
        expected = numpy_metrics(logits[n], codes[n], mask)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].shape == (N,)
            np.testing.assert_allclose(found[name][n], value, rtol=2e-5, atol=2e-6, err_msg=name)
    assert found["position_information"][1] > 0.05 and found["codeword_use"][0] < 1


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        ([0.25] * 4, 4.0),
        ([1.0, 0.0, 0.0, 0.0], 1.0),
        ([0.5, 0.5, 0.0, 0.0], 2.0),
        ([0.5, 0.25, 0.25, 0.0], 2**1.5),
    ],
)
def test_perplexity(distribution, expected):
    np.testing.assert_allclose(perplexity(jnp.asarray(distribution)), expected, rtol=1e-6)


def test_perplexity_has_a_finite_gradient_where_a_code_is_not_used():
    gradient = jax.grad(lambda p: perplexity(p))(jnp.asarray([0.5, 0.5, 0.0]))
    assert np.isfinite(gradient).all()


def test_one_code():
    found = with_codes(np.full((B, 40), 3))
    assert found["target_perplexity"] == 1.0 and found["top_code_share"] == 1.0
    assert found["codeword_use"] == 1 / V
    assert abs(found["position_information"]) < 1e-5
    np.testing.assert_allclose(found["prediction_perplexity"], V, rtol=1e-6)
    np.testing.assert_allclose(found["loss"], np.log(V), rtol=1e-6)


def test_a_single_frame_makes_a_codeword_used():
    codes = np.zeros((B, 40), int)
    codes[2, 17] = 5
    found = with_codes(codes)
    assert found["codeword_use"] == 2 / V
    np.testing.assert_allclose(found["top_code_share"], 1 - 1 / codes.size, rtol=1e-6)


def test_codes_without_position():
    # in every bin of ten frames every code is equally frequent
    codes = np.arange(B * 40).reshape(40, B).T % V
    found = with_codes(codes[:, :40])
    np.testing.assert_allclose(found["target_perplexity"], V, rtol=1e-5)
    np.testing.assert_allclose(found["top_code_share"], 1 / V, rtol=1e-5)
    assert found["codeword_use"] == 1.0
    assert abs(found["position_information"]) < 0.01


def test_codes_that_are_the_position():
    found = with_codes(np.broadcast_to(np.arange(40) // 10, (B, 40)))
    np.testing.assert_allclose(found["position_information"], 1.0, rtol=1e-5)
    np.testing.assert_allclose(found["target_perplexity"], 4, rtol=1e-5)
    # codes that tell the first half from the second: one bit of two
    found = with_codes(np.broadcast_to(np.arange(40) // 20, (B, 40)))
    np.testing.assert_allclose(found["position_information"], 0.5, rtol=1e-5)


def test_perfect_predictions():
    codes = example()[1][0]
    found = with_codes(codes, logits=50 * np.eye(V, dtype=np.float32)[codes][None])
    assert found["accuracy"] == 1.0 and found["loss"] < 1e-6
    both = found["prediction_perplexity"], found["target_perplexity"]
    np.testing.assert_allclose(*both, rtol=1e-5)


def test_statistics_of_two_batches_add_up():
    first, second = example(seed=1), example(seed=2)
    parts = [statistics_of(*batch, bins=P) for batch in (first, second)]
    total = jax.tree.map(jnp.add, *parts)
    logits, codes = (np.concatenate([first[i], second[i]], axis=1) for i in (0, 1))
    whole = statistics_of(logits, codes, np.concatenate([first[2], second[2]]), bins=P)
    for a, b in zip(total, whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert total.frames == first[2].sum() + second[2].sum()
    metrics, separate = metrics_of(total), [metrics_of(part) for part in parts]
    mean = np.mean([m["target_perplexity"] for m in separate], axis=0)
    assert np.abs(metrics["target_perplexity"] - mean).max() > 1e-3  # not a mean of the batches


def test_bins_cover_the_longest_crop():
    for seconds in (1.0, 4.0, 15.6, 20.0):
        for field, hop in ((400, 320), (200, 160), (800, 640), (10, 50)):
            frames = int(seconds * 16_000 - field) // hop + 1
            assert position_bins(seconds, hop=hop) * 10 >= frames
    assert position_bins(20.0, hop=320) <= 101 and position_bins(20.0, hop=640) <= 51


def test_spread_is_that_of_numpy_over_the_real_frames():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(3, 7, 5)) * np.arange(1, 6) + 10).astype(np.float32)
    padded = np.arange(7) >= np.array([7, 4, 2])[:, None]
    measure = jax.jit(lambda x, mask: standard_deviations(moments({"a": x, "b": 2 * x}, mask)))
    for mask, real in ((None, x.reshape(-1, 5)), (padded, x[~padded])):
        found = measure(x, mask)
        expected = np.float64(real).std(axis=0).mean()
        np.testing.assert_allclose(found["a"], expected, rtol=1e-5)
        np.testing.assert_allclose(found["b"], 2 * expected, rtol=1e-5)
    halves = [moments({"a": part}, None)["a"] for part in (x[:1], x[1:])]
    added = standard_deviations({"a": jax.tree.map(jnp.add, *halves)})["a"]
    np.testing.assert_allclose(added, np.float64(x).std(axis=(0, 1)).mean(), rtol=1e-5)
    constant = standard_deviations(moments({"a": np.full((2, 9, 3), 0.7, np.float32)}, None))
    assert constant["a"] < 1e-3


def test_tables_count_what_meets():
    labels = np.array([[0, 1, -1, 2], [2, 2, 3, 0]])  # 3 is none of them, as -1
    codes = np.array([[[0, 1, 1, 2], [2, 0, 1, 0]], [[1, 1, 1, 1], [0, 0, 0, 0]]])
    found = jax.jit(count_table, static_argnames=("num_labels", "codebook_size"))(
        labels, codes, num_labels=3, codebook_size=4
    )
    expected = np.zeros((2, 3, 4))
    for n in range(2):
        for label, code in zip(labels.ravel(), codes[n].ravel(), strict=True):
            if 0 <= label < 3:
                expected[n, label, code] += 1
    np.testing.assert_array_equal(found, expected)
    assert found[0].sum() == 6


def test_a_table_of_thousands_of_labels_takes_no_more_than_itself():
    labels, codes = jnp.zeros((8, 1000), jnp.int32), jnp.zeros((2, 8, 1000), jnp.int32)
    count = jax.jit(count_table, static_argnames=("num_labels", "codebook_size"))
    program = count.lower(labels, codes, num_labels=5000, codebook_size=16).compile()
    table = 2 * 5000 * 16 * 4
    assert program.memory_analysis().temp_size_in_bytes < 4 * table + 8 * codes.size * 4


def test_loudness_bins_are_ranks_of_the_energy_within_each_crop():
    wave = np.random.default_rng(0).normal(size=(3, 1300)).astype(np.float32)
    wave *= np.array([1, 100, 0.01], np.float32)[:, None]
    bins = jax.jit(loudness_bins, static_argnames=("field", "hop"))
    found = np.asarray(bins(wave, field=40, hop=32))
    loudness = lambda w: [np.sum(np.float64(w[32 * t :][:40]) ** 2) for t in range(40)]
    energy = np.array(list(map(loudness, wave)))
    np.testing.assert_array_equal(found, energy.argsort(axis=1).argsort(axis=1) // 2)
    assert (np.bincount(found.ravel()) == 6).all() and found.max() == 19


def test_table_metrics():
    same = np.stack([np.eye(3) * 5, np.ones((3, 3))])
    found = table_metrics({"phone": same, "loudness": same, "speaker": same[:, :1]})
    assert found.keys() == {"pnmi", "phone_purity", "loudness_information"}  # one speaker: nothing
    np.testing.assert_allclose(found["pnmi"], [1, 0], atol=1e-12)
    np.testing.assert_allclose(found["phone_purity"], [1, 1 / 3])
    np.testing.assert_allclose(found["loudness_information"], [1, 0], atol=1e-12)


def test_norms():
    tree = lambda x: {"a": jnp.full((3,), x), "b": jnp.full((1, 1), x)}
    found = norms(gradients=tree(1.0), params=tree(2.0), updates=tree(0.5))
    assert found.keys() == {"gradient_norm", "parameter_norm", "update_norm"}
    expected = {"gradient_norm": 2.0, "parameter_norm": 4.0, "update_norm": 1.0}
    assert {name: float(value) for name, value in found.items()} == expected


def test_to_record():
    metrics = {"loss": jnp.asarray([1.0, 2.0, 6.0]), "learning_rate": jnp.asarray(0.5)}
    record = to_record(metrics)
    expected = {"loss": 3.0, "loss_0": 1.0, "loss_1": 2.0, "loss_2": 6.0, "learning_rate": 0.5}
    assert record == expected
    assert all(type(value) is float for value in record.values())
