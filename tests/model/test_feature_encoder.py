"""Frames of a waveform: their number, what each of them sees, and their values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from dinosr_jax.model.feature_encoder import (
    FeatureEncoder,
    _cut_waveforms,
    num_frames,
    receptive_field,
)
from dinosr_jax.recipes import published_recipe

PUBLISHED = tuple(published_recipe().model.conv_layers)
SMALL = ((4, 10, 5), (4, 3, 2), (6, 2, 2))


def numpy_frames(samples, conv_layers):
    """How often the receptive field fits, counted."""
    field, hop = receptive_field(conv_layers)
    return len(range(0, samples - field + 1, hop))


@pytest.mark.parametrize(
    ("samples", "frames"),
    [(0, 0), (1, 0), (399, 0), (400, 1), (719, 1), (720, 2), (16_000, 49), (320_000, 999)],
)
def test_num_frames(samples, frames):
    found = num_frames(samples, PUBLISHED)
    assert found == frames and type(found) is int


def test_num_frames_of_every_length():
    lengths = np.arange(3000)
    expected = [numpy_frames(int(n), PUBLISHED) for n in lengths]
    assert [num_frames(int(n), PUBLISHED) for n in lengths] == expected
    found = num_frames(lengths.reshape(30, 100), PUBLISHED)
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, np.reshape(expected, (30, 100)))
    found = jax.jit(lambda n: num_frames(n, PUBLISHED))(jnp.asarray(lengths))
    np.testing.assert_array_equal(found, expected)


def test_receptive_field():
    assert receptive_field(PUBLISHED) == (400, 320)
    assert receptive_field(SMALL) == (10 + 2 * 5 + 1 * 10, 20)
    assert receptive_field(()) == (1, 1)


@pytest.mark.parametrize("samples", [400, 719, 720, 3217])
def test_the_network_makes_as_many_frames(samples):
    network = FeatureEncoder(PUBLISHED)
    waveforms = jax.ShapeDtypeStruct((2, samples), jnp.float32)
    output, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), waveforms)
    assert output.shape == (2, num_frames(samples, PUBLISHED), 512)
    assert output.dtype == jnp.float32
    kernels = [variables["params"][f"conv_{i}"]["kernel"].shape for i in range(7)]
    assert kernels == [(k, c, 512) for (_, k, _), c in zip(PUBLISHED, (1, *[512] * 6), strict=True)]


@pytest.fixture(scope="module")
def small():
    network = FeatureEncoder(SMALL)
    rng = np.random.default_rng(0)
    waveforms = jnp.asarray(rng.normal(size=(2, 117)), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), waveforms)["params"]
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32)
    return network, jax.tree.map(draw, shapes), waveforms


def numpy_encoder(x, params):
    """Plain loops in float64; x [S]."""
    x = np.float64(x)[:, None]
    for i, (channels, width, stride) in enumerate(SMALL):
        p = jax.tree.map(np.float64, params[f"conv_{i}"])
        y = np.zeros(((len(x) - width) // stride + 1, channels))
        for t in range(len(y)):
            for k in range(width):
                y[t] += x[t * stride + k] @ p["kernel"][k]
        y = y - y.mean(axis=-1, keepdims=True)
        y = y / np.sqrt((y**2).mean(axis=-1, keepdims=True) + 1e-5)
        y = y * p["layer_norm"]["scale"] + p["layer_norm"]["bias"]
        x = 0.5 * y * (1 + erf(y / np.sqrt(2)))
    return x


def test_values_are_those_of_plain_loops(small):
    network, params, waveforms = small
    found = jax.jit(network.apply)({"params": params}, waveforms)
    for b in range(2):
        expected = numpy_encoder(waveforms[b], params)
        np.testing.assert_allclose(found[b], expected, atol=1e-5)


def test_a_frame_sees_its_receptive_field_and_nothing_else(small):
    network, params, waveforms = small
    field, hop = receptive_field(SMALL)
    encode = lambda x: network.apply({"params": params}, x[None])[0, 2]
    reach = np.abs(jax.jit(jax.jacrev(encode))(waveforms[0])).max(axis=0) > 0
    expected = np.arange(117)
    np.testing.assert_array_equal(reach, (expected >= 2 * hop) & (expected < 2 * hop + field))


@pytest.mark.parametrize(("frames", "more"), [(1, 0), (7, 3), (24, 1)])  # samples at the end
def test_pieces_of_a_waveform_have_its_frames(small, frames, more, monkeypatch):
    network, params, _ = small
    field, hop = receptive_field(SMALL)
    size = (3, field + (frames - 1) * hop + more)
    waveforms = np.random.default_rng(0).standard_normal(size).astype(np.float32)

    def loss(params, weights):
        found = network.apply({"params": params}, waveforms)
        return jnp.sum(found * weights), found

    weights = np.random.default_rng(1).standard_normal((3, frames, SMALL[-1][0]))
    run = lambda: jax.jit(jax.value_and_grad(loss, has_aux=True))(params, weights)
    (_, expected), gradients = run()
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    (_, found), others = run()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for one, other in zip(*map(jax.tree.leaves, (gradients, others)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_pieces_overlap_by_what_a_frame_sees():
    conv_layers = ((4, 3, 2), (4, 2, 2))  # a frame sees 5 samples, every 4
    cut = _cut_waveforms(jnp.arange(2 * 16).reshape(2, 16), conv_layers, pieces=2)  # 3 frames
    np.testing.assert_array_equal(cut[0], np.arange(9))
    np.testing.assert_array_equal(cut[1], [*range(8, 16), 0])
    np.testing.assert_array_equal(cut[2], 16 + np.arange(9))
    assert cut.shape == (4, 9)


def test_too_little_audio_has_no_frames_on_any_platform(small, monkeypatch):
    network, params, _ = small
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    short = jnp.ones((2, receptive_field(SMALL)[0] - 1))
    found = jax.eval_shape(network.apply, {"params": params}, short)
    assert found.shape == (2, 0, SMALL[-1][0])


def test_init_is_kaiming_normal():
    network = FeatureEncoder(((512, 10, 5), (64, 3, 2)))
    params = jax.jit(network.init)(jax.random.key(0), jnp.zeros((1, 40)))["params"]
    for i, fan_in in enumerate((10, 3 * 512)):
        kernel = np.asarray(params[f"conv_{i}"]["kernel"])
        deviation = np.sqrt(2 / fan_in)
        np.testing.assert_allclose(kernel.std(), deviation, rtol=0.05)
        assert np.abs(kernel).max() > 2.6 * deviation  # normal, not cut at two deviations
        np.testing.assert_array_equal(params[f"conv_{i}"]["layer_norm"]["scale"], 1)
        assert set(params[f"conv_{i}"]) == {"kernel", "layer_norm"}  # no bias


def test_bfloat16(small):
    network, params, waveforms = small
    half = FeatureEncoder(SMALL, jnp.bfloat16)
    found = jax.jit(half.apply)({"params": params}, waveforms)
    assert found.dtype == jnp.bfloat16
    exact = jax.jit(network.apply)({"params": params}, waveforms)
    np.testing.assert_allclose(np.float32(found), exact, atol=0.15)
    assert np.abs(np.float32(found) - exact).mean() > 1e-4
