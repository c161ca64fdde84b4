"""The update as a whole: meshes, freezing, padding, donation and evaluation."""

import re
from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from dinosr_jax.objective import codebook as codebooks
from dinosr_jax.objective.masking import span_mask
from dinosr_jax.objective.teacher import teacher_parts
from dinosr_jax.training import sharding
from dinosr_jax.training.optimizer import make_optimizer
from dinosr_jax.training.state import Batch, init_state, make_model, stream_key
from dinosr_jax.training.step import (
    apply,
    draw_mask,
    frame_padding,
    make_first_codewords,
    make_train_step,
    teacher_targets,
)
from dinosr_jax.training.validation import make_eval_step
from tests.update_runs import config_of, on_mesh, run_updates

FREEZE = 4  # the update from which on teacher and feature encoder stay as they are
UPDATES = 5
FROZEN = ("feature_encoder", "feature_projection")


pytestmark = pytest.mark.usefixtures("compile_quickly")


def tiny_config(**changes):
    plain = {"optimizer__warmup_steps": 0}
    plain["mask__require_same_masks"] = False  # devices have unequal numbers of masked frames
    return config_of(**(plain | changes))


def noise(*, size=16, samples=8000, seed=0):
    return np.random.default_rng(seed).normal(size=(size, samples)).astype(np.float32)


def train(*, data=1, fsdp=1, tensor=1, start=None, updates=UPDATES, **more):
    """Some updates on a mesh; `states` and `metrics` are on the host."""
    changes = {"teacher__freeze_step": FREEZE, "teacher__freeze_feature_encoder_step": FREEZE}
    changes |= {"mesh__data": data, "mesh__fsdp": fsdp, "mesh__tensor": tensor}
    config = tiny_config(**({"model__layerdrop": 0.3} | changes | more))
    arrays_of = lambda k: {"waveforms": noise(seed=k)}
    return run_updates(config, make_train_step, arrays_of, updates=updates, start=start)


@pytest.fixture(scope="module")
def eight():
    return train(data=8)


@pytest.fixture(scope="module")
def one(eight):
    assert eight.config.model.dropout == eight.config.model.attention_dropout == 0.1
    return train(start=eight.states[0], updates=3)


MESHES = [pytest.param({"fsdp": 8}, marks=pytest.mark.slow), {"data": 2, "fsdp": 2, "tensor": 2}]


@pytest.fixture(scope="module", params=MESHES, ids=str)
def cut(request, eight):
    return train(start=eight.states[0], updates=3, **request.param)


def test_first_codewords_are_those_of_one_device(eight):
    found = []
    for devices in (1, 8):
        mesh, abstract, make = on_mesh(tiny_config(mesh__data=devices, model__layerdrop=0.3))
        first = sharding.jit_train_step(mesh, make_first_codewords(eight.config), abstract)
        state, metrics = first(make(), sharding.shard_batch(mesh, noise()))
        assert not metrics
        found.append(jax.device_get(state))
    close(found[0].codebook, found[1].codebook)
    assert same(found[0].params, eight.states[0].params) and found[0].step == 0
    assert not np.allclose(found[0].codebook.sums, eight.states[0].codebook.sums)


PERTURBED = {"perturb__formants": 0.2, "perturb__channel_db": 6.0, "mask__unmasked_weight": 0.5}


def test_student_hears_another_voice_and_the_teacher_the_recording(eight):
    changes = {"start": eight.states[0], "updates": 1} | PERTURBED
    several, one = train(data=8, **changes), train(**changes)
    close(several.states[1], one.states[1])
    # teacher and codes are those of the recording, the gradient is another
    close(one.states[1].codebook, eight.states[1].codebook)
    norms = [run.metrics[0]["gradient_norm"] for run in (one, eight)]
    assert not np.allclose(*norms, rtol=1e-3)


def test_loss_of_frames_that_are_not_masked_is_their_mean(eight):
    silent = {"model__dropout": 0.0, "model__attention_dropout": 0.0, "model__layerdrop": 0.0}
    config = tiny_config(**silent)
    state, batch = eight.states[0], Batch(noise(), np.arange(1, 17, dtype=np.int32) * 500)
    model, padded = make_model(config), frame_padding(config, batch)
    mask = draw_mask(config, batch, stream_key(config.seed, "mask", 0), span_mask)

    def norm(weight):
        step = make_train_step(tiny_config(mask__unmasked_weight=weight, **silent))
        return jax.jit(step)(state, batch)[1]["gradient_norm"]

    @jax.jit
    @jax.grad
    def expected(params, weight):
        projected = apply(model, params, batch.waveforms, padded, method="project")
        targets = teacher_targets(config, model, state.teacher_params, projected, batch)
        inputs = {"mask": mask, "padding_mask": padded}
        hidden = apply(model, params, projected, **inputs, method="read")
        logits = apply(model, params, hidden, method="predict")
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, codebooks.assign(state.codebook, targets)
        ).mean(axis=0)
        mean = lambda frames: jnp.mean(losses, where=frames)
        return mean(mask) + weight * mean(~mask & ~padded)

    plain, value = (optax.tree.norm(expected(state.params, weight)) for weight in (0.0, 2.0))
    np.testing.assert_allclose(norm(2.0), value, rtol=1e-4)
    assert abs(value - plain) > 0.05 * plain


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def moved(a, b):
    leaves = jax.tree_util.tree_leaves_with_path(jax.tree.map(np.array_equal, a, b))
    return [jax.tree_util.keystr(path) for path, equal in leaves if not equal]


def paths(tree):
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def close(found, expected, atol=1e-5):
    def check(path, a, b):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(check, found, expected)


def test_state_is_replicated_and_the_batch_cut(eight):
    devices = set(jax.devices())
    assert len(devices) == 8
    leaves = jax.tree.leaves((eight.state, eight.on_device))
    assert len(leaves) > 100
    for leaf in leaves:
        assert leaf.sharding.device_set == devices and leaf.sharding.is_fully_replicated
    pair = jax.tree.leaves(eight.abstract), jax.tree.leaves(eight.state)
    for planned, leaf in zip(*pair, strict=True):
        assert planned.shape == leaf.shape and planned.dtype == leaf.dtype
        assert planned.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
    waveforms = eight.batch.waveforms
    assert waveforms.sharding.spec == PartitionSpec(("data", "fsdp"))
    assert {shard.device for shard in waveforms.addressable_shards} == devices
    assert {shard.data.shape for shard in waveforms.addressable_shards} == {(2, 8000)}


# end of a leaf's path -> which of its axes are cut by fsdp, and by tensor; all others are whole
CUT = {
    r"feature_encoder/conv_\d/kernel": (2, None),
    r"feature_projection/linear/kernel": (0, None),
    r"encoder/pos_conv/kernel": (3, None),
    r"attention/(query|key|value)/kernel": (1, 2),
    r"attention/(query|key|value)/bias": (None, 1),
    r"attention/output/kernel": (2, 1),
    r"ffn_in/kernel": (1, 2),
    r"ffn_in/bias": (None, 1),
    r"ffn_out/kernel": (2, 1),
    r"heads/kernel": (1, 2),
    r"heads/bias": (None, 1),
    r"codebook/sums": (2, 1),
    r"codebook/counts": (None, 1),
}


def test_every_leaf_of_the_state_is_cut_as_planned(cut):
    seen = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(cut.state):
        name, size = jax.tree_util.keystr(path, simple=True, separator="/"), list(leaf.shape)
        for pattern, axes in CUT.items():
            if re.search(f"(^|/){pattern}$", name):
                seen.add(pattern)
                for axis, name_of_axis in zip(axes, ("fsdp", "tensor"), strict=True):
                    if axis is not None:
                        size[axis] //= cut.mesh.shape[name_of_axis]
        assert {shard.data.shape for shard in leaf.addressable_shards} == {tuple(size)}, name
        assert leaf.sharding.device_set == set(jax.devices())
    assert seen == set(CUT)
    sizes = {shard.data.shape for shard in cut.batch.waveforms.addressable_shards}
    assert sizes == {(16 // (cut.mesh.shape["data"] * cut.mesh.shape["fsdp"]), 8000)}


def close_runs(found, expected):
    for k in range(3):
        close(found.metrics[k], expected.metrics[k])
        close(found.states[k + 1].params, expected.states[k + 1].params)
        close(found.states[k + 1].teacher_params, expected.states[k + 1].teacher_params)
        close(found.states[k + 1].codebook, expected.states[k + 1].codebook)
        assert found.states[k + 1].step == expected.states[k + 1].step == k + 1


def test_one_device_is_eight_devices(one, eight):
    assert {d for leaf in jax.tree.leaves(one.state) for d in leaf.devices()} == {jax.devices()[0]}
    close_runs(eight, one)


def test_one_device_is_any_mesh(one, cut):
    close_runs(cut, one)


def test_sizes_that_a_mesh_does_not_divide_stay_whole():
    config = tiny_config(mesh__data=1, mesh__fsdp=8, model__codebook_size=12, model__ffn_dim=63)
    layers = on_mesh(config)[1].params["encoder"]["layers"]
    assert layers["ffn_in"]["kernel"].sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    odd = {"model__codebook_size": 12, "model__ffn_dim": 63}
    config = tiny_config(mesh__data=1, mesh__tensor=8, **odd)
    layers = on_mesh(config)[1].params["encoder"]["layers"]
    assert layers["ffn_in"]["kernel"].sharding.spec == PartitionSpec(None, "fsdp", None)
    assert layers["ffn_in"]["bias"].sharding.spec == PartitionSpec(None, None)


NO_DROPOUT = {"model__dropout": 0.0, "model__attention_dropout": 0.0}


@pytest.fixture(scope="module")
def whole(eight):
    return train(start=eight.states[0], updates=3, **NO_DROPOUT)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "data"), [(4, 1), (2, 8)])
def test_micro_batches_give_the_update_of_the_whole_batch(whole, eight, count, data):
    more = {"optimizer__accumulation_steps": count, "data__batch_multiple": 16}
    found = train(data=data, start=eight.states[0], updates=3, **NO_DROPOUT, **more)
    close_runs(found, whole)


@pytest.mark.slow
def test_dropout_moves_nothing_between_the_devices():
    """Of the feed-forward activations, whose last axis the tensor axis cuts."""
    mesh = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
    found = []
    for rate in (0.0, 0.1):
        config = tiny_config(model__activation_dropout=rate, **mesh)
        devices, abstract, _ = on_mesh(config)
        step = sharding.jit_train_step(devices, make_train_step(config), abstract)
        program = step.lower(abstract, sharding.shard_batch(devices, noise())).compile().as_text()
        names = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
        found.append(Counter(re.findall(rf" ({names})\(", program)))
    assert found[0] == found[1]
    assert found[0]["all-reduce"] > 10 and not found[0]["all-to-all"]


def test_a_frozen_front_end_is_not_differentiated(whole, eight):
    """From the first update: the others move as they do, and the norm is that of what moves."""
    frozen = train(
        start=eight.states[0], updates=1, teacher__freeze_feature_encoder_step=1, **NO_DROPOUT
    )
    first, second = whole.states[1], frozen.states[1]
    for part in first.params:
        if part in FROZEN:
            assert same(second.params[part], eight.states[0].params[part])
        else:
            close(second.params[part], first.params[part])
    moments = first.opt_state.inner[0].mu  # (1 - b1) times the first gradient
    squares = lambda tree: sum(
        np.sum(np.square(np.float64(x) / 0.1)) for x in jax.tree.leaves(tree)
    )
    norms = [float(run.metrics[0]["gradient_norm"]) for run in (whole, frozen)]
    np.testing.assert_allclose(norms[0] ** 2, squares(moments), rtol=1e-4)
    moving = {name: tree for name, tree in moments.items() if name not in FROZEN}
    np.testing.assert_allclose(norms[1] ** 2, squares(moving), rtol=1e-4)
    assert norms[1] < norms[0]

    program = jax.make_jaxpr(make_train_step(frozen.config))(
        eight.states[0], Batch(jnp.asarray(noise()))
    )
    branches = next(
        equation.params["branches"]
        for equation in program.eqns
        if equation.primitive.name == "cond" and "conv" in str(equation)
    )
    learning, holding = (str(branch).count("= conv_general_dilated") for branch in branches)
    assert holding < learning - 7  # a gradient for each of the seven kernels, and for their inputs


def test_no_recompilation(eight):
    assert eight.step._cache_size() == 1


def test_everything_moves_before_the_freeze(eight):
    for k in range(FREEZE - 1):
        old, new = eight.states[k], eight.states[k + 1]
        for part in ("params", "teacher_params", "codebook", "opt_state"):
            before, after = getattr(old, part), getattr(new, part)
            assert set(moved(before, after)) >= set(paths(before)), (k, part)


def test_teacher_is_the_running_average(eight):
    for k in range(FREEZE - 1):
        decay = 0.999 + (0.9999 - 0.999) * (k + 1) / 100
        np.testing.assert_allclose(eight.metrics[k]["ema_decay"], decay, rtol=1e-6)
        old = eight.states[k].teacher_params["encoder"]
        new = eight.states[k + 1].teacher_params["encoder"]
        student = eight.states[k + 1].params["encoder"]
        assert same(new["pos_conv"], student["pos_conv"])
        average = lambda t, s, d=decay: np.float64(t) * d + np.float64(s) * (1 - d)
        for name in ("layers", "layer_norm"):
            close(new[name], jax.tree.map(average, old[name], student[name]), atol=1e-7)


def test_freeze_holds_bit_for_bit_while_the_rest_moves(eight):
    for k in range(FREEZE - 1, UPDATES):
        old, new = eight.states[k], eight.states[k + 1]
        assert eight.metrics[k]["ema_decay"] == 1.0
        assert same(old.teacher_params, new.teacher_params)
        for part in old.params:
            if part in FROZEN:
                assert same(old.params[part], new.params[part]), part
            else:
                assert moved(old.params[part], new.params[part]) == paths(old.params[part]), part
        assert moved(old.codebook, new.codebook) == paths(old.codebook)


def test_the_state_is_donated_and_updates_are_deterministic(eight):
    given = eight.make()
    again, _ = eight.step(given, sharding.shard_batch(eight.mesh, noise(seed=0)))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((given.params, given.teacher_params)))
    assert same(jax.device_get(again), eight.states[1])


def test_the_first_teacher_is_the_student(eight):
    first = eight.states[0]
    assert tuple(first.teacher_params) == ("encoder",)
    assert same(first.teacher_params["encoder"], first.params["encoder"])
    assert first.step == 0


@pytest.fixture
def small_network(monkeypatch):
    def init(key, samples):
        names = (*FROZEN, "encoder", "heads")
        return {"params": {name: {"kernel": jax.random.normal(key, (3, 2))} for name in names}}

    network = SimpleNamespace(init=init)
    monkeypatch.setattr("dinosr_jax.training.state.make_model", lambda _: network)


def test_teacher_does_not_share_memory_with_the_student(small_network):
    config = tiny_config(teacher__scope="full")
    state = init_state(config, optimizer=make_optimizer(config))
    assert same(state.teacher_params, {part: state.params[part] for part in state.teacher_params})
    leaves = jax.tree.leaves((state.params, state.teacher_params))
    assert len(leaves) == 7
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == 7


def test_reinit_makes_another_teacher(small_network):
    config = tiny_config(teacher__init="reinit")
    state = init_state(config, optimizer=make_optimizer(config))
    kernels = [params["encoder"]["kernel"] for params in (state.params, state.teacher_params)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1


def test_evaluation_leaves_the_state_alone(eight):
    step = make_eval_step(eight.config)
    evaluate = sharding.jit_eval_step(eight.mesh, step, eight.abstract, numbers=1)
    before = jax.device_get(eight.state)
    first = jax.device_get(evaluate(eight.state, eight.batch, 0))
    again = jax.device_get(evaluate(eight.state, eight.batch, 0))
    other = jax.device_get(evaluate(eight.state, eight.batch, 1))
    assert same(before, jax.device_get(eight.state))
    assert same(first, again)
    assert not np.array_equal(first.prediction.loss, other.prediction.loss)
    # the masks of an evaluation do not depend on how far the run is
    later = eight.state.replace(step=eight.state.step + 1)
    assert same(first, jax.device_get(evaluate(later, eight.batch, 0)))
    assert evaluate._cache_size() == 1
    assert np.isfinite(first.prediction.loss).all() and first.prediction.frames > 0


@pytest.fixture(scope="module")
def padded(eight):
    """One update with a teacher of scope 'full'; two batches that differ in their padding only."""
    rates = {"model__dropout": 0.0, "model__attention_dropout": 0.0, "model__layerdrop": 0.0}
    config = tiny_config(teacher__scope="full", **rates)
    state = jax.device_put(eight.states[0], jax.devices()[0])
    teacher = jax.tree.map(jnp.copy, teacher_parts(state.params, scope="full"))
    state = state.replace(teacher_params=teacher)
    num_samples = np.array([8000, 5000, 6500, 4321], np.int32)
    waveforms = noise(size=4)
    silent = np.where(np.arange(8000) < num_samples[:, None], waveforms, 0).astype(np.float32)
    # the same masks in training and evaluation
    sample_mask = lambda key, *args, **kwargs: span_mask(jax.random.key(7), *args, **kwargs)
    step = jax.jit(make_train_step(config, sample_mask=sample_mask))
    results = [step(state, Batch(w, jnp.asarray(num_samples))) for w in (waveforms, silent)]
    batch = Batch(jnp.asarray(waveforms), jnp.asarray(num_samples))
    return SimpleNamespace(**locals())


def test_full_scope_averages_the_feature_encoder(padded):
    state, (new, metrics) = padded.state, padded.results[0]
    assert set(new.teacher_params) == {*FROZEN, "encoder"}
    decay = float(metrics["ema_decay"])
    for part in (*FROZEN, "encoder"):
        average = lambda t, s: np.float64(t) * decay + np.float64(s) * (1 - decay)
        old, student = state.teacher_params[part], new.params[part]
        close(new.teacher_params[part], jax.tree.map(average, old, student), atol=1e-7)
        assert moved(old, new.teacher_params[part]) == paths(old)


def test_padded_batch_gives_a_finite_loss(padded):
    config, batch, (_, metrics) = padded.config, padded.batch, padded.results[0]
    frames = np.asarray(~frame_padding(config, batch)).sum()
    assert frames == 24 + 15 + 20 + 13
    assert all(np.isfinite(value).all() for value in jax.tree.leaves(metrics))
    assert 0 < metrics["masked_share"] <= frames / (4 * 24)
    np.testing.assert_allclose(metrics["loss"].mean(), np.log(16), atol=1.0)


def test_spread_of_teacher_and_feature_encoder_over_the_real_frames(padded):
    config, state, batch = padded.config, padded.state, padded.batch
    _, metrics = padded.results[0]
    model, padding = make_model(config), frame_padding(config, batch)

    def outputs(params):
        features = apply(model, params, batch.waveforms, method="convolve")
        projected = apply(model, params, batch.waveforms, method="project")
        hidden = apply(model, params, projected, padding_mask=padding, method="encode").output
        return features, hidden

    features, hidden = jax.jit(outputs)(state.params)  # the first teacher is the student
    real = ~np.asarray(padding)
    for name, x in (("feature_encoder_std", features), ("teacher_std", hidden)):
        expected = np.float64(x)[real].std(axis=0).mean()
        np.testing.assert_allclose(metrics[name], expected, rtol=1e-4)
        assert expected > 0.1


def test_what_is_in_the_padding_does_not_matter(padded):
    (new, metrics), (other, other_metrics) = padded.results
    close(metrics, other_metrics)
    close(new.params, other.params)
    close(new.codebook, other.codebook)


def test_padding_is_never_masked(padded):
    config, batch = padded.config, padded.batch
    padding = np.asarray(frame_padding(config, batch))
    draw = jax.jit(lambda key: draw_mask(config, batch, key, span_mask))
    masks = np.stack([draw(stream_key(0, "mask", step)) for step in range(50)])
    assert not (masks & padding).any()
    assert (masks.sum(axis=2) > 0).all()
    reached = masks.any(axis=0)
    for utterance, real in enumerate((~padding).sum(axis=1)):
        # starts are drawn from [0, real - length), as in fairseq: the last frame is never masked
        assert reached[utterance, : real - 1].all() and not reached[utterance, real - 1]
    assert not np.array_equal(masks[0], masks[1])


def test_unpadded_batch_has_no_padding(padded):
    assert frame_padding(padded.config, Batch(jnp.zeros((2, 8000)))) is None


def test_full_scope_reads_its_own_feature_encoder(padded):
    state = padded.state
    teacher = dict(state.teacher_params)
    for part in FROZEN:
        shuffled = jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=-1), teacher[part])
        other, _ = padded.step(
            state.replace(teacher_params=teacher | {part: shuffled}), padded.batch
        )
        difference = np.abs(other.codebook.sums - padded.results[0][0].codebook.sums).max()
        assert difference > 0.1, part


def test_gradient_is_that_of_the_mean_over_all_masked_frames(padded):
    config = padded.config
    evaluate = jax.jit(make_eval_step(config, sample_mask=padded.sample_mask))
    statistics = jax.device_get(evaluate(padded.state, padded.batch, 0)).prediction
    new, metrics = padded.results[0]
    np.testing.assert_allclose(metrics["loss"], statistics.loss / statistics.frames, rtol=1e-5)
    # of the loss with respect to the biases of the heads
    n = config.model.num_codebooks
    expected = (statistics.probabilities - statistics.codes.sum(axis=1)) / statistics.frames / n
    found = optax.tree.get(new.opt_state, "mu")["heads"]["bias"] / (1 - config.optimizer.b1)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_targets_get_no_gradient_and_do_not_see_padding(padded):
    state, batch = padded.state, padded.batch
    config = tiny_config()
    model = make_model(config)
    weights = jnp.asarray(noise(size=2 * 4 * 24, samples=32).reshape(2, 4, 24, 32))

    def weighed(params, teacher_params, batch, weights):
        projected = apply(model, params, batch.waveforms, method="project")
        targets = teacher_targets(config, model, teacher_params, projected, batch)
        return jnp.sum(targets * weights), targets

    run = jax.jit(jax.value_and_grad(weighed, argnums=(0, 1), has_aux=True))
    (value, targets), gradients = run(state.params, state.teacher_params, batch, weights)
    assert abs(value) > 1
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))
    # the second utterance, of 5,000 samples and 15 frames, without the others
    alone = Batch(batch.waveforms[1:2, :5000])
    arguments = (state.params, state.teacher_params, alone, weights[:, 1:2, :15])
    (_, expected), _ = run(*arguments)
    np.testing.assert_allclose(targets[:, 1, :15], expected[:, 0], atol=2e-5)
    np.testing.assert_array_equal(targets[:, 1, 15:], 0)


def test_random_keys_change_with_the_step(padded, monkeypatch):
    drawn = {}

    def record(seed, stream, step=0):
        drawn[stream] = (seed, step)
        return stream_key(seed, stream, step)

    monkeypatch.setattr("dinosr_jax.training.step.stream_key", record)
    config = tiny_config()
    state = padded.state.replace(teacher_params={"encoder": padded.state.params["encoder"]})
    jax.eval_shape(make_train_step(config), state, Batch(jnp.zeros((2, 8000))))
    assert drawn.keys() == {"mask", "dropout", "perturb"}
    for seed, step in drawn.values():
        assert seed == config.seed and isinstance(step, jax.core.Tracer)
    keys = [stream_key(seed, s, k) for seed in (0, 1) for s in ("mask", "dropout") for k in (0, 1)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh__data": 9}, r"config\.mesh: found data 9, fsdp 1, tensor 1; .* is 1 to 8"),
        ({"mesh__data": -1, "mesh__fsdp": 16}, r"config\.mesh: found data -1, fsdp 16"),
        (
            {"mesh__data": 2, "mesh__fsdp": 4, "data__batch_multiple": 12},
            r"config\.data\.batch_multiple: 12 .* 8 devices .* multiple of 8",
        ),
        (
            {"optimizer__accumulation_steps": 2},
            r"config\.data\.batch_multiple: 8 .* in 2 micro-batches; .* multiple of 16",
        ),
    ],
)
def test_mesh_that_does_not_fit_is_an_error(changes, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(tiny_config(**changes))


def test_an_axis_of_minus_one_takes_what_is_left():
    assert dict(sharding.make_mesh(tiny_config()).shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    config = tiny_config(mesh__data=2, mesh__fsdp=-1, mesh__tensor=2)
    assert dict(sharding.make_mesh(config).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert sharding.make_mesh(tiny_config(mesh__data=1)).size == 1
