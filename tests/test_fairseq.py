"""Parity with the golden numbers of the PyTorch peer, through fairseq's parameter names."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinosr_jax.config import parse
from dinosr_jax.interop import fairseq
from dinosr_jax.objective import codebook as codebooks
from dinosr_jax.objective.loss import prediction_loss
from dinosr_jax.training.state import Batch, make_model
from dinosr_jax.training.step import apply, make_train_step, teacher_targets

GOLDEN = Path(__file__).parent / "golden"
LEARNING_RATE = 1e-3


def golden_config(name: str = "tiny"):
    config = fairseq.config_from_fields(json.loads((GOLDEN / f"{name}.json").read_text()))
    config.model.dropout = config.model.attention_dropout = config.model.layerdrop = 0.0
    optimizer = config.optimizer
    optimizer.learning_rate = LEARNING_RATE
    optimizer.warmup_steps, optimizer.hold_steps, optimizer.decay_steps = 0, 1000, 0
    return parse(config)


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "tiny.npz"))


@pytest.fixture(scope="module")
def weights():
    return dict(np.load(GOLDEN / "tiny_weights.npz"))


@pytest.fixture(scope="module")
def state(weights):
    return fairseq.to_state(weights, config=golden_config())


def close(found, expected, atol):
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=atol)


def layer_features(config, params, batch, golden):
    """conv_features, projected_features and all layers of the student, as the golden names."""
    model = make_model(config)
    padding = jnp.asarray(golden["padding_mask"])
    padding = padding if padding.any() else None

    @jax.jit
    def compute(params, waveforms):
        conv = apply(model, params, waveforms, method="convolve")
        projected = apply(model, params, waveforms, method="project")
        kwargs = {"padding_mask": padding, "all_layers": True, "method": "encode"}
        return conv, projected, apply(model, params, projected, **kwargs)

    conv, projected, layers = compute(params, batch.waveforms)
    found = {"conv_features": conv, "projected_features": projected}
    for i in range(config.model.num_layers):
        found[f"student_ffn_{i}"], found[f"student_layer_{i}"] = layers.ffn[i], layers.block[i]
    return found


def teacher_features(config, state, projected, padding=None):
    model = make_model(config)
    kwargs = {"padding_mask": padding, "all_layers": True, "method": "encode"}
    return jax.jit(lambda p, x: apply(model, p, x, **kwargs).ffn)(state.teacher_params, projected)


def test_features_of_every_layer(golden, state):
    config = golden_config()
    found = layer_features(config, state.params, Batch(jnp.asarray(golden["waveforms"])), golden)
    for name, value in found.items():
        close(value, golden[name], 1e-5)
    ffn = teacher_features(config, state, jnp.asarray(golden["projected_features"]))
    for i in range(config.model.num_layers):
        close(ffn[i], golden[f"teacher_ffn_{i}"], 1e-5)


def test_padded_features_do_not_see_the_padding():
    golden = dict(np.load(GOLDEN / "tiny_padded.npz"))
    config = golden_config("tiny_padded")
    weights = dict(np.load(GOLDEN / "tiny_padded_weights.npz"))
    state = fairseq.to_state(weights, config=config)
    batch = Batch(jnp.asarray(golden["waveforms"]), jnp.asarray(golden["lengths"]))
    found = layer_features(config, state.params, batch, golden)
    real = ~golden["padding_mask"]
    for name, value in found.items():
        close(np.asarray(value)[real], golden[name][real], 1e-5)
    projected = jnp.asarray(golden["projected_features"])
    ffn = teacher_features(config, state, projected, jnp.asarray(golden["padding_mask"]))
    for i in range(config.model.num_layers):
        close(np.asarray(ffn[i])[real], golden[f"teacher_ffn_{i}"][real], 1e-5)


def test_targets_codes_and_loss(golden, state):
    config = golden_config()
    batch = Batch(jnp.asarray(golden["waveforms"]))
    model = make_model(config)
    project = jax.jit(lambda params, waveforms: apply(model, params, waveforms, method="project"))
    projected = project(state.params, batch.waveforms)
    teach = jax.jit(lambda *args: teacher_targets(config, model, *args))
    targets = teach(state.teacher_params, projected, batch)
    close(targets, golden["targets"], 1e-5)
    codes = codebooks.assign(state.codebook, targets)
    np.testing.assert_array_equal(codes, golden["codeword_ids"])
    mask = jnp.asarray(golden["mask"])

    @jax.jit
    def mean_loss(params, projected):
        hidden = apply(model, params, projected, mask=mask, method="encode").output
        logits = apply(model, params, hidden, method="predict")
        return jnp.mean(prediction_loss(logits, codes, mask))

    loss = mean_loss(state.params, projected)
    np.testing.assert_allclose(loss, golden["loss_0"], rtol=1e-5)
    np.testing.assert_allclose(golden["loss_per_masked_frame"].mean(), golden["loss_0"], rtol=1e-5)


@pytest.mark.parametrize("scan_layers", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_three_updates(golden, state, scan_layers):
    fields = golden_config().to_dict()
    fields["model"]["scan_layers"] = scan_layers
    config = parse(fields)
    step = jax.jit(
        make_train_step(config, sample_mask=lambda *_, **__: jnp.asarray(golden["mask"]))
    )
    batch = Batch(jnp.asarray(golden["waveforms"]))
    now = state
    for k in range(3):
        now, metrics = step(now, batch)
        np.testing.assert_allclose(metrics["loss"].mean(), golden[f"loss_{k}"], rtol=1e-5)
        close(now.codebook.sums, golden[f"codebook_sums_{k}"], 1e-5)
        close(now.codebook.counts, golden[f"codebook_counts_{k}"], 1e-5)
        if k == 0:
            np.testing.assert_allclose(metrics["gradient_norm"], golden["grad_norm"], rtol=1e-5)
            target = metrics["target_perplexity"].mean()
            np.testing.assert_allclose(target, golden["target_ppl"][0], rtol=1e-5)
            prediction = metrics["prediction_perplexity"].mean()
            np.testing.assert_allclose(prediction, golden["pred_ppl"][0], rtol=1e-5)
    found = fairseq.from_state(now, config=config)
    expected = dict(np.load(GOLDEN / "tiny_weights_after_3_steps.npz"))
    assert found.keys() == expected.keys()
    worst = max(np.abs(found[name] - expected[name]).max() for name in expected)
    for name in expected:
        close(found[name], expected[name], 1e-5)
    print("worst", worst)


def test_gradients_of_the_first_update(golden, state):
    config = golden_config()
    model = make_model(config)
    mask, codes = jnp.asarray(golden["mask"]), jnp.asarray(golden["codeword_ids"])

    def loss(params):
        projected = apply(model, params, jnp.asarray(golden["waveforms"]), method="project")
        hidden = apply(model, params, projected, mask=mask, method="encode").output
        logits = apply(model, params, hidden, method="predict")
        return jnp.mean(prediction_loss(logits, codes, mask))

    gradients = jax.jit(jax.grad(loss))(state.params)
    close(gradients["mask_embedding"]["embedding"], golden["grad_mask_embedding"], 1e-5)
    conv = gradients["feature_encoder"]["conv_0"]["kernel"].transpose(2, 1, 0)
    close(conv, golden["grad_conv0"], 1e-5)
    close(gradients["heads"]["kernel"][0].T, golden["grad_head0"], 1e-5)
