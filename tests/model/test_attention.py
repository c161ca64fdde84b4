"""Who computes attention, and that all of them compute the same, dropped entries included."""

import contextlib
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from dinosr_jax.config import parse
from dinosr_jax.model import attention, fused_attention, layers, positional_dropout
from dinosr_jax.model.attention import SelfAttention, implementation
from dinosr_jax.recipes import published_recipe
from dinosr_jax.training import loop, sharding
from dinosr_jax.training.devices import check_attention
from dinosr_jax.training.optimizer import make_optimizer
from dinosr_jax.training.state import init_state
from tests.model.test_transformer import encoder
from tests.training.test_step import tiny_config, train

KEY = jax.random.key(11)
TPU = {"platform": "tpu", "head_width": 64, "frames": 999, "dtype": jnp.bfloat16}


@contextlib.contextmanager
def interpreted():
    """While entered, the kernels that are traced run on any platform."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_attention, "INTERPRETED", True)
        yield


def close(found, expected, tolerance=1e-5):
    """Within the tolerance, of the largest value of an array where that is more than 1."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape and np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, np.abs(b).max()))


def drawn(batch, frames, heads, width, dtype=jnp.float32):
    """Queries, keys, values, and a gradient of the output."""
    rng = np.random.default_rng(frames)
    return [jnp.asarray(rng.normal(size=(batch, frames, heads, width)), dtype) for _ in range(4)]


def outputs_and_gradients(function, q, k, v, g):
    def both(q, k, v, g):
        y, pull = jax.vjp(function, q, k, v)
        return y, *pull(g)

    return jax.jit(both)(q, k, v, g)


def compare(batch, frames, heads, width, *, rate, lengths=None, tolerance=1e-5, dtype=jnp.float32):
    inputs = drawn(batch, frames, heads, width, dtype)
    padding = None if lengths is None else jnp.arange(frames)[None] >= jnp.array(lengths)[:, None]
    seeds = (
        positional_dropout.draw_seeds(KEY, batch=batch, heads=heads, frames=frames)
        if rate
        else None
    )
    run = lambda attend: outputs_and_gradients(
        lambda q, k, v: attend(q, k, v, padding, seeds, rate=rate), *inputs
    )
    with interpreted():
        found = run(attention._attend_fused)
    close(found, run(attention._attend), tolerance)


@pytest.mark.parametrize(
    ("frames", "heads", "rate", "lengths"),
    [
        (199, 12, 0.1, (199, 150)),
        (199, 16, 0.1, None),
        (987, 2, 0.1, (987, 1)),
        (999, 2, 0.0, None),
        pytest.param(999, 12, 0.1, (999, 613), marks=pytest.mark.slow),
        pytest.param(987, 16, 0.1, None, marks=pytest.mark.slow),
        pytest.param(999, 16, 0.0, (500, 999), marks=pytest.mark.slow),
        pytest.param(1100, 2, 0.1, (1100, 1030), marks=pytest.mark.slow),  # blocks of 128 queries
    ],
)
def test_fused_is_xla_with_the_same_entries_dropped(frames, heads, rate, lengths):
    compare(2, frames, heads, 64, rate=rate, lengths=lengths)


@pytest.mark.parametrize(("heads", "width"), [(3, 64), (1, 8), (4, 32), (2, 128)])
def test_fused_takes_heads_that_fill_lanes_or_not(heads, width):
    compare(1, 45, heads, width, rate=0.3, lengths=(40,))


def test_fused_without_a_real_frame_attends_to_all_as_xla_does():
    compare(3, 70, 2, 16, rate=0.2, lengths=(0, 70, 3))


def test_fused_in_bfloat16():
    compare(1, 199, 2, 64, rate=0.1, lengths=(160,), dtype=jnp.bfloat16, tolerance=0.02)


def test_fused_drops_even_where_almost_all_is_dropped():
    compare(1, 40, 2, 8, rate=0.9)


def test_nothing_of_all_queries_and_keys_leaves_the_chip():
    inputs = [jax.ShapeDtypeStruct((2, 997, 12, 64), jnp.bfloat16)] * 4
    seeds = positional_dropout.draw_seeds(KEY, batch=2, heads=12, frames=997)
    padding = jnp.zeros((2, 997), bool)

    def text(attend):
        run = lambda q, k, v, g: outputs_and_gradients(
            lambda q, k, v: attend(q, k, v, padding, seeds, rate=0.1), q, k, v, g
        )
        return jax.jit(run).trace(*inputs).lower(lowering_platforms=("tpu",)).as_text()

    large = "997x997x"
    assert large in text(attention._attend)
    fused = text(attention._attend_fused)
    assert large not in fused and "1024x1024x" not in fused
    assert fused.count("tpu_custom_call") == 2  # forward, backward


def test_which_entries_drop_is_a_function_of_seeds_and_positions():
    """Against a transcription in whole numbers of Python."""
    mask = 2**32 - 1

    def mix(x):
        x = (x ^ x >> 16) * 0x7FEB352D & mask
        x = (x ^ x >> 15) * 0x846CA68B & mask
        return x ^ x >> 16

    sizes = {"batch": 2, "heads": 3, "frames": 11}
    of_rows, of_keys = jax.random.split(KEY)
    rows = jax.random.bits(of_rows, (2, 3), jnp.uint32).tolist()
    first = int(jax.random.bits(of_keys, (1,), jnp.uint32)[0])
    seeds = positional_dropout.draw_seeds(KEY, **sizes)
    found = np.asarray(positional_dropout.drop(jnp.ones((2, 3, 9, 11)), seeds, rate=0.4))
    for b, h, q, k in np.ndindex(found.shape):
        row = mix(q * 0x9E3779B1 + rows[b][h] & mask)
        column = mix(k * 0x85EBCA77 + first & mask)
        word = mix(row ^ column)
        word ^= word >> 16  # the last step undone
        kept = word - 2**32 * (word >> 31) >= round(0.4 * 2**32) - 2**31
        np.testing.assert_allclose(found[b, h, q, k], kept / 0.6, rtol=1e-6)
    seeds = positional_dropout.draw_seeds(KEY, **sizes | {"frames": 7})
    part = positional_dropout.drop(jnp.ones((2, 3, 5, 7)), seeds, rate=0.4)
    np.testing.assert_array_equal(part, found[:, :, :5, :7])


def test_every_bit_reaches_every_bit():
    x = jax.random.bits(KEY, (1, 50_000), jnp.uint32)
    flips = positional_dropout.mix(x) ^ positional_dropout.mix(x ^ (1 << jnp.arange(32))[:, None])
    share = np.stack([np.mean(np.asarray(flips) >> bit & 1, axis=1) for bit in range(32)])
    assert abs(share - 0.5).max() < 0.02  # 9 standard deviations of the sample
    assert len(np.unique(positional_dropout.mix(jnp.arange(100_000, dtype=jnp.uint32)))) == 100_000


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropped_entries_are_as_many_and_as_independent_as_threefry_s(rate):
    batch, heads, frames = 4, 6, 200
    seeds = positional_dropout.draw_seeds(KEY, batch=batch, heads=heads, frames=frames)
    shape = (batch, heads, frames, frames)
    kept = np.asarray(positional_dropout.drop(jnp.ones(shape), seeds, rate=rate)) > 0
    others = positional_dropout.draw_seeds(
        jax.random.key(12), batch=batch, heads=heads, frames=frames
    )
    other = np.asarray(positional_dropout.drop(jnp.ones(shape), others, rate=rate)) > 0
    plain = np.asarray(jax.random.bernoulli(KEY, 1 - rate, shape))
    deviation = np.sqrt(rate * (1 - rate))

    def statistics(kept):
        """Everything in standard deviations: what is left of independence, by pairs of entries."""
        x = (kept - (1 - rate)) / deviation
        found = {"rate": x.mean() * np.sqrt(x.size)}
        for name, axis in (("row", 2), ("column", 3), ("head", 1), ("batch row", 0)):
            sums = x.sum(axis=axis) / np.sqrt(x.shape[axis])  # too many or few of it: variance
            found[f"variance of {name} sums"] = (sums.var() - 1) * np.sqrt(sums.size / 2)
            for shift in (1, 2, 3):
                product = x * np.roll(x, shift, axis)
                found[f"{name} {shift}"] = product.mean() * np.sqrt(product.size)
        entries = x.reshape(-1, frames)
        for name, table in (("rows", entries[:1000]), ("columns", entries.T)):
            table = (table - table.mean()) / table.std()  # of its own rate
            gram = table @ table.T / np.sqrt(table.shape[1])
            pairs = gram[np.triu_indices(len(table), 1)]
            found[f"pairs of {name}"] = (pairs.var() - 1) * np.sqrt(pairs.size / 2)
        four = x[:, :, 1:, 1:] * x[:, :, :-1, 1:] * x[:, :, 1:, :-1] * x[:, :, :-1, :-1]
        found["corners of squares"] = four.mean() * np.sqrt(four.size)
        return found

    for name, value in statistics(kept).items():
        assert abs(value) < 4.5, name
    assert max(map(abs, statistics(plain).values())) < 4.5  # the yardstick itself
    same = np.mean((kept - kept.mean()) * (other - other.mean())) / deviation**2
    assert abs(same) * np.sqrt(kept.size) < 4.5  # of another key


def test_entries_of_a_transposed_or_shifted_pattern_are_others():
    seeds = positional_dropout.draw_seeds(KEY, batch=1, heads=1, frames=400)
    kept = np.asarray(positional_dropout.drop(jnp.ones((1, 1, 400, 400)), seeds, rate=0.5))[0, 0]
    x = np.sign(kept - 1.0)
    for other in (x.T, x[::-1], x[:, ::-1], np.roll(x, (7, 7), (0, 1))):
        assert abs(np.mean(x * other)) < 4.5 / 400 * np.sqrt(2)


MESH = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize("name", ["xla", "fused"])
def test_a_mesh_changes_neither_values_nor_what_is_dropped(name, compile_quickly):
    """Rows and heads have their numbers in the whole batch, wherever they are computed."""
    batch, frames, heads, width = 8, 21, 4, 8
    module = SelfAttention(heads, 0.3, name)
    x = jax.random.normal(KEY, (batch, frames, heads * width))
    padding = jnp.arange(frames)[None] >= jnp.arange(14, 14 + batch)[:, None]
    params = SelfAttention(heads, 0.0, "xla").init(KEY, x, None, key=None)

    def run(params, x):
        apply = lambda params, x: module.apply(params, x, padding, key=KEY)
        y, pull = jax.vjp(apply, params, x)
        return y, pull(jnp.sin(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))

    with interpreted():
        expected = jax.jit(run)(params, x)
        mesh = jax.make_mesh(tuple(MESH.values()), tuple(MESH), axis_types=(AxisType.Auto,) * 3)
        cut = sharding.batch_sharding(mesh)
        step = jax.jit(sharding._on(mesh, run), in_shardings=(sharding.replicated(mesh), cut))
        found = step(params, x)
        kept = jax.jit(lambda x: module.apply(params, x, padding, key=None))(x)
    close(found, expected)
    assert np.abs(kept - expected[0]).max() > np.abs(kept).max() / 10  # something is dropped


OPTIONS = (
    {"remat": "dots", "scan_layers": True, "layerdrop": 0.4},
    {"remat": "full", "scan_layers": False, "layerdrop": 0.0},
    pytest.param({"remat": "none", "scan_layers": True, "layerdrop": 0.4}, marks=pytest.mark.slow),
    pytest.param({"remat": "dots", "scan_layers": False, "layerdrop": 0.4}, marks=pytest.mark.slow),
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fused_in_layers_that_drop_scan_and_compute_anew(options, compile_quickly):
    x = jax.random.normal(KEY, (2, 19, 16))
    padding = jnp.arange(19)[None] >= jnp.array([[19], [12]])
    networks = {
        name: encoder(attention=name, attention_dropout=0.2, dropout=0.1, **options)
        for name in ("xla", "fused")
    }
    params = networks["xla"].init(KEY, x, None)["params"]

    def loss(name, params, x):
        y = networks[name].apply({"params": params}, x, padding, key=KEY, all_layers=True)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in y), y

    def run(name):
        return jax.jit(jax.grad(functools.partial(loss, name), (0, 1), has_aux=True))(params, x)

    with interpreted():
        found = run("fused")
    close(found, run("xla"))


def test_a_layer_keeps_what_the_kernel_gave():
    """The backward pass of remat 'dots' runs the backward kernel alone."""
    x = jnp.zeros((1, 16, 16))

    def kernels(remat):
        network = encoder(attention="fused", attention_dropout=0.2, remat=remat, scan_layers=True)
        params = encoder().init(KEY, x, None)["params"]
        loss = lambda params: network.apply({"params": params}, x, None, key=KEY).output.sum()
        with interpreted():
            text = str(jax.make_jaxpr(jax.grad(loss))(params))
        return {name: text.count(f"name=attention_{name}") for name in ("forward", "backward")}

    assert kernels("dots") == {"forward": 1, "backward": 1}
    assert kernels("full") == {"forward": 2, "backward": 1}


def test_losses_of_a_run_are_the_same(compile_quickly):
    """Some updates of the whole recipe on a mesh; attention's dropout, LayerDrop and all."""
    how = {"updates": 2, **MESH}
    expected = train(model__attention="xla", **how)
    with interpreted():
        found = train(model__attention="fused", start=expected.states[0], **how)
    losses = lambda run: np.array([metrics["loss"] for metrics in run.metrics])  # [updates, N]
    np.testing.assert_allclose(losses(found), losses(expected), rtol=0, atol=1e-5)
    close(found.states[-1].params, expected.states[-1].params, 2e-5)


def test_auto_is_fused_on_a_tpu_that_can_and_xla_elsewhere():
    auto = functools.partial(implementation, "auto")
    assert auto(**TPU) == "fused"
    assert auto(**TPU | {"dtype": jnp.float32}) == "fused"
    for platform in ("cpu", "gpu"):
        assert auto(**TPU | {"platform": platform}) == "xla"
    assert auto(**TPU | {"head_width": 20}) == "xla"
    assert auto(**TPU | {"frames": 5000}) == "xla"


def test_what_is_asked_for_is_what_computes():
    gpu = TPU | {"platform": "gpu", "capability": "9.0"}
    assert implementation("fused", **TPU) == "fused"
    assert implementation("cudnn", **gpu) == "cudnn"
    for device in (TPU, gpu, TPU | {"platform": "cpu"}, TPU | {"head_width": 5, "frames": 9000}):
        assert implementation("xla", **device) == "xla"


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("fused", {"platform": "cpu"}, "needs a TPU, not a CPU"),
        ("fused", {"platform": "gpu", "capability": "9.0"}, "needs a TPU, not a GPU"),
        ("fused", {"head_width": 96}, "a width of 32, 64 or 128, not 96"),
        ("fused", {"head_width": 256}, "a width of 32, 64 or 128, not 256"),
        ("fused", {"frames": 1793}, "takes 1792 frames at most, not 1793"),
        ("cudnn", {"platform": "cpu"}, "needs an NVIDIA GPU, not a CPU"),
        ("cudnn", {}, "needs an NVIDIA GPU, not a TPU"),
        ("cudnn", {"platform": "gpu", "dtype": jnp.float32}, "needs compute_dtype 'bfloat16'"),
        ("cudnn", {"platform": "gpu", "head_width": 20}, "a multiple of 8 up to 128, not 20"),
        ("cudnn", {"platform": "gpu", "capability": "7.5"}, "8.0 or later, not 7.5"),
    ],
)
def test_what_a_device_cannot_run_is_refused(name, changes, said):
    with pytest.raises(ValueError) as refused:
        implementation(name, **TPU | changes)
    assert str(refused.value).startswith(f"config.model.attention: found {name!r}, which ")
    assert said in str(refused.value) and "choose 'xla', or 'auto'" in str(refused.value)


@pytest.mark.parametrize("name", ["fused", "cudnn"])
def test_a_run_on_a_device_that_cannot_is_refused_at_its_start(name, tmp_path):
    values = tiny_config().to_dict() | {"compute_dtype": "bfloat16"}
    values["model"]["attention"] = name
    config = parse(values)
    no_data = SimpleNamespace()
    with pytest.raises(ValueError, match=rf"config.model.attention: found '{name}', which needs"):
        loop.train(config, workdir=tmp_path, train_data=no_data, eval_data=None)
    assert not (tmp_path / "config.json").exists()


def test_what_computes_is_logged(caplog):
    gpu = SimpleNamespace(platform="gpu", compute_capability="8.0")
    caplog.set_level("INFO", logger="dinosr_jax")
    config = published_recipe()
    config.compute_dtype = "bfloat16"
    for name, said in (
        ("auto", "computed by xla on gpu (config.model.attention is 'auto')"),
        ("cudnn", "by xla: cuDNN cannot drop probabilities (model.attention_dropout is 0.1)"),
    ):
        config.model.attention = name
        check_attention(parse(config), gpu)
        assert said in caplog.text
    assert check_attention(parse(config), gpu) == "cudnn"
    with pytest.raises(ValueError, match="capability 8.0 or later, not 7.0"):
        check_attention(parse(config), SimpleNamespace(platform="gpu", compute_capability="7.0"))


@pytest.mark.parametrize("name", ["fused", "cudnn"])
def test_a_network_does_not_fall_back(name):
    x = jnp.zeros((1, 8, 16))
    params = SelfAttention(2, 0.0, "xla").init(KEY, x, None, key=None)
    for key in (None, KEY):
        with pytest.raises(ValueError, match="config.model.attention: found"):
            SelfAttention(2, 0.5, name).apply(params, x, None, key=key)


def test_a_held_out_recording_longer_than_any_crop_is_computed(monkeypatch):
    monkeypatch.setattr(fused_attention, "MOST_FRAMES", 10)
    x = jax.random.normal(KEY, (1, 12, 16))
    params = SelfAttention(2, 0.0, "xla").init(KEY, x, None, key=None)
    run = lambda name, key: SelfAttention(2, 0.5, name).apply(params, x, None, key=key)
    for name in ("fused", "auto"):
        np.testing.assert_array_equal(run(name, None), run("xla", None))
    np.testing.assert_array_equal(run("auto", KEY), run("xla", KEY))
    with pytest.raises(ValueError, match="takes 10 frames at most, not 12"):
        run("fused", KEY)


@pytest.mark.parametrize("name", ["fused", "cudnn"])
def test_a_state_is_made_on_any_device(name):
    values = tiny_config().to_dict() | {"compute_dtype": "bfloat16"}
    values["model"]["attention"] = name
    config = parse(values)
    state = jax.eval_shape(lambda: init_state(config, optimizer=make_optimizer(config)))
    assert state.params["encoder"]["layers"]["attention"]["query"]["kernel"].shape == (3, 32, 32)


def test_cudnn_attends_to_the_same_and_never_where_probabilities_drop(monkeypatch):
    asked = []
    plain = jax.nn.dot_product_attention

    def on_cpu(*arrays, implementation, **lengths):
        asked.append(implementation)
        return plain(*arrays, implementation="xla", **lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", on_cpu)
    monkeypatch.setattr(layers, "platform", lambda: "gpu")
    x = jax.random.normal(KEY, (2, 14, 16)).astype(jnp.bfloat16)
    params = SelfAttention(2, 0.0, "xla").init(KEY, x, None, key=None)
    padding = jnp.arange(14)[None] >= jnp.array([[14], [9]])
    real = ~np.asarray(padding)
    run = lambda name, rate, mask, key: SelfAttention(2, rate, name).apply(params, x, mask, key=key)
    for mask, frames in ((None, np.ones_like(real)), (padding, real)):
        found, expected = (run(name, 0.0, mask, None) for name in ("cudnn", "xla"))
        np.testing.assert_allclose(
            found[frames].astype(np.float32), expected[frames].astype(np.float32), atol=0.02
        )
    assert asked == ["cudnn"] * 2
    run("cudnn", 0.0, None, KEY)
    assert asked == ["cudnn"] * 3
    np.testing.assert_array_equal(run("cudnn", 0.5, None, KEY), run("xla", 0.5, None, KEY))
    assert asked == ["cudnn"] * 3
