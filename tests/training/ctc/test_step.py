"""The update of a recogniser: what moves when, on any mesh, with any padding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dinosr_jax.data.vocabulary import letters
from dinosr_jax.training.ctc.step import (
    draw_masks,
    encode,
    make_finetuning_step,
    make_recognition_step,
    output_logits,
)
from dinosr_jax.training.state import Batch, make_model
from tests import update_runs

FREEZE = 2
PLAIN = {"model__dropout": 0.0, "model__attention_dropout": 0.0, "model__layerdrop": 0.0}
pytestmark = pytest.mark.usefixtures("compile_quickly")


def config_of(**changes):
    fields = {"task": "ctc", "ctc__symbols": letters().symbols, "ctc__freeze_steps": FREEZE}
    fields |= {"ctc__channel_mask_length": 8, "optimizer__warmup_steps": 0}
    fields |= {"optimizer__weight_decay": 0.0}
    return update_runs.config_of(**(fields | changes))


def arrays_of(*, size=8, samples=8000, seed=0):
    """Noise of several lengths, random transcripts, and a last row that only fills the batch."""
    rng = np.random.default_rng(seed)
    num_samples = rng.choice([samples // 2, samples // 3 * 2, samples], size).astype(np.int32)
    num_samples[-1] = samples
    waveforms = rng.normal(size=(size, samples)).astype(np.float32)
    waveforms[np.arange(samples)[None] >= num_samples[:, None]] = 0
    num_labels = rng.integers(1, 6, size).astype(np.int32)
    num_labels[-1] = waveforms[-1] = 0
    labels = rng.integers(4, 32, (size, 8)).astype(np.int32)
    return {
        "waveforms": waveforms, "num_samples": num_samples,
        "labels": labels, "num_labels": num_labels,
    }  # fmt: skip


def train(*, updates, start=None, data=1, fsdp=1, tensor=1, **changes):
    meshes = {"mesh__data": data, "mesh__fsdp": fsdp, "mesh__tensor": tensor}
    config, batch_of = config_of(**(meshes | changes)), lambda k: arrays_of(seed=k)
    how = {"updates": updates, "start": start}
    return update_runs.run_updates(config, make_finetuning_step, batch_of, **how)


@pytest.fixture(scope="module")
def eight():
    return train(updates=FREEZE + 2, data=8)


def moved(a, b):
    same = jax.tree.map(np.array_equal, a, b)
    return {name for name, part in same.items() if not all(jax.tree.leaves(part))}


def test_the_output_layer_learns_first_and_the_feature_encoder_never(eight):
    params = [state.params for state in eight.states]
    assert set(params[0]) == {
        "feature_encoder", "feature_projection", "mask_embedding", "encoder", "output",
    }  # fmt: skip
    for before, after in zip(params[:FREEZE], params[1:], strict=False):
        assert moved(before, after) == {"output"}
    everything = set(params[0]) - {"feature_encoder"}
    assert moved(params[FREEZE], params[FREEZE + 1]) == everything
    assert moved(params[0], params[-1]) == everything
    assert eight.states[0].teacher_params == {} and eight.states[0].codebook is None


def test_the_moments_of_what_was_frozen_start_with_its_first_gradient(eight):
    """Adam's first update has the size of the learning rate, whatever the gradient."""
    before, after = (state.params["encoder"] for state in eight.states[FREEZE : FREEZE + 2])
    rate = eight.metrics[FREEZE]["learning_rate"]
    kernel = lambda tree: tree["layers"]["ffn_out"]["kernel"]
    sizes = np.abs(kernel(after) - kernel(before))
    assert np.median(sizes) == pytest.approx(rate, rel=0.01)
    assert sizes.max() <= rate * 1.01


@pytest.mark.parametrize(
    "mesh",
    [pytest.param({"data": 1}, marks=pytest.mark.slow), {"data": 2, "fsdp": 2, "tensor": 2}],
    ids=str,
)
def test_every_mesh_computes_the_same(eight, mesh):
    found = train(updates=FREEZE + 1, start=eight.states[0], **mesh)
    for ours, theirs in zip(found.metrics, eight.metrics, strict=False):
        for name, value in ours.items():
            np.testing.assert_allclose(value, theirs[name], rtol=2e-4, err_msg=name)
    gap = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), found.states[FREEZE].params, eight.states[FREEZE].params
    )
    assert max(jax.tree.leaves(gap)) < 1e-5


def test_micro_batches_are_one_batch(eight):
    one = train(updates=1, start=eight.states[0], data=2, **PLAIN)
    four = train(updates=1, start=eight.states[0], data=2, optimizer__accumulation_steps=4, **PLAIN)
    assert one.metrics[0]["loss"] == pytest.approx(four.metrics[0]["loss"], rel=1e-5)
    for a, b in zip(*(jax.tree.leaves(r.states[1].params) for r in (one, four)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def losses_of(config, params, arrays):
    """Mean over the real rows of optax's loss on each utterance alone."""
    model, found = make_model(config), []
    for row in range(len(arrays["waveforms"])):
        number, samples = arrays["num_labels"][row], arrays["num_samples"][row]
        if not number:
            continue
        batch = Batch(jnp.asarray(arrays["waveforms"][row, :samples])[None])
        hidden = encode(config, model, params, batch, (None, None))
        logits = output_logits(config, params, hidden)
        labels = arrays["labels"][row, :number][None]
        none = [jnp.zeros(x.shape[:2]) for x in (logits, labels)]
        found.append(float(optax.ctc_loss(logits, none[0], labels, none[1])[0]))
    return np.mean(found)


@pytest.mark.slow
def test_loss_is_the_mean_over_utterances_each_alone(eight):
    """Neither padding nor empty rows count; masks and dropout are off."""
    plain = PLAIN | {"mask__prob": 0.0, "ctc__channel_mask_prob": 0.0}
    run = train(updates=1, start=eight.states[0], **plain)
    expected = losses_of(run.config, eight.states[0].params, arrays_of(seed=0))
    assert run.metrics[0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert run.metrics[0]["num_utterances"] == 7


def test_padding_changes_no_logit(eight):
    config, params, arrays = config_of(), eight.states[0].params, arrays_of()
    model = make_model(config)
    logits = lambda batch: output_logits(
        config, params, encode(config, model, params, batch, (None, None))
    )
    together = logits(Batch(jnp.asarray(arrays["waveforms"]), jnp.asarray(arrays["num_samples"])))
    for row, samples in enumerate(arrays["num_samples"]):
        alone = logits(Batch(jnp.asarray(arrays["waveforms"][row, :samples])[None]))[0]
        np.testing.assert_allclose(together[row, : len(alone)], alone, atol=1e-5)


def test_held_out_losses_and_codes_are_those_of_each_row(eight):
    config, arrays = config_of(), arrays_of()
    state = eight.states[0]
    batch = Batch(**{name: jnp.asarray(array) for name, array in arrays.items()})
    found = make_recognition_step(config)(state, batch)
    real = np.asarray(arrays["num_labels"]) > 0
    mean = float(np.mean(np.asarray(found.loss)[real]))
    assert mean == pytest.approx(losses_of(config, state.params, arrays), rel=1e-5)
    assert found.loss[-1] == 0 and found.codes.shape[0] == 8


def test_masks_of_frames_and_channels():
    config = config_of(mask__prob=0.65, ctc__channel_mask_prob=0.5)
    arrays = {name: jnp.asarray(array) for name, array in arrays_of().items()}
    batch = Batch(**arrays)
    from dinosr_jax.objective.masking import span_mask

    frames, channels = draw_masks(config, batch, jnp.asarray(3), span_mask)
    again, _ = draw_masks(config, batch, jnp.asarray(3), span_mask)
    other, _ = draw_masks(config, batch, jnp.asarray(4), span_mask)
    assert np.array_equal(frames, again) and not np.array_equal(frames, other)
    assert channels.shape == (8, 32)
    shares = np.asarray(channels).mean(axis=1)
    assert 0.1 < shares.mean() < 0.5  # 2 spans of 8 of 32 channels, which may overlap
    runs = np.diff(np.flatnonzero(np.diff(np.pad(np.asarray(channels[0]).astype(int), 1))))
    assert runs[::2].min() >= 1
    off = config_of(mask__prob=0.0, ctc__channel_mask_prob=0.0)
    assert draw_masks(off, batch, jnp.asarray(3), span_mask) == (None, None)


def test_masked_channels_are_zero_for_the_encoder(eight):
    config, params = config_of(), eight.states[0].params
    model = make_model(config)
    projected = jnp.asarray(np.random.default_rng(0).normal(size=(1, 12, 32)), jnp.float32)
    mask = jnp.arange(32)[None] < 8
    run = lambda x, **masks: model.apply({"params": params}, x, method="encode", **masks).output
    masked = run(projected, channel_mask=mask)
    np.testing.assert_array_equal(masked, run(jnp.where(mask[:, None], 0, projected)))
    assert np.abs(np.asarray(masked - run(projected))).max() > 1e-3
