"""What the golden numbers of the PyTorch peer say, and what is found here: for tests and benchmark.

Every function computes a part of it through fairseq's parameter names, and yields comparisons.
"""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dinosr_jax.config import parse
from dinosr_jax.interop import fairseq
from dinosr_jax.objective import codebook as codebooks
from dinosr_jax.objective.loss import prediction_loss
from dinosr_jax.training.state import Batch, make_model
from dinosr_jax.training.step import apply, make_train_step, teacher_targets

GOLDEN = Path(__file__).parent / "golden"
LEARNING_RATE = 1e-3
TOLERANCE = 1e-5


class Comparison(NamedTuple):
    """An array that was found, the golden one, and how far they may be apart."""

    name: str
    found: Any
    expected: Any
    rtol: float = 0.0
    atol: float = TOLERANCE

    def check(self) -> None:
        """Raises AssertionError where they are further apart."""
        np.testing.assert_allclose(
            np.asarray(self.found), self.expected, self.rtol, self.atol, err_msg=self.name
        )

    @property
    def difference(self) -> float:
        """The largest one."""
        return float(np.abs(np.float64(self.found) - self.expected).max())


def relative(name: str, found: Any, expected: Any) -> Comparison:
    """Of a loss, norm or perplexity."""
    return Comparison(name, found, expected, rtol=TOLERANCE, atol=0.0)


def golden_config(name: str = "tiny"):
    config = fairseq.config_from_fields(json.loads((GOLDEN / f"{name}.json").read_text()))
    config.model.dropout = config.model.attention_dropout = config.model.layerdrop = 0.0
    optimizer = config.optimizer
    optimizer.learning_rate = LEARNING_RATE
    optimizer.warmup_steps, optimizer.hold_steps, optimizer.decay_steps = 0, 1000, 0
    return parse(config)


@functools.cache
def golden(name: str = "tiny") -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / f"{name}.npz"))


@functools.cache
def golden_state(name: str = "tiny"):
    return fairseq.to_state(golden(f"{name}_weights"), config=golden_config(name))


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


def features(name: str = "tiny") -> Iterator[Comparison]:
    """Of every layer of student and teacher; of 'tiny_padded' the real frames."""
    numbers, config, state = golden(name), golden_config(name), golden_state(name)
    real = ~numbers["padding_mask"]
    padding = None if real.all() else jnp.asarray(numbers["padding_mask"])
    batch = Batch(jnp.asarray(numbers["waveforms"]))
    for key, value in layer_features(config, state.params, batch, numbers).items():
        yield Comparison(key, np.asarray(value)[real], numbers[key][real])
    projected = jnp.asarray(numbers["projected_features"])
    ffn = teacher_features(config, state, projected, padding)
    for i in range(config.model.num_layers):
        key = f"teacher_ffn_{i}"
        yield Comparison(key, np.asarray(ffn[i])[real], numbers[key][real])


def targets_codes_and_loss() -> Iterator[Comparison]:
    """Of the state before the first update."""
    numbers, config, state = golden(), golden_config(), golden_state()
    batch = Batch(jnp.asarray(numbers["waveforms"]))
    model = make_model(config)
    project = jax.jit(lambda params, waveforms: apply(model, params, waveforms, method="project"))
    projected = project(state.params, batch.waveforms)
    teach = jax.jit(lambda *args: teacher_targets(config, model, *args))
    targets = teach(state.teacher_params, projected, batch)
    yield Comparison("targets", targets, numbers["targets"])
    codes = codebooks.assign(state.codebook, targets)
    yield Comparison("codes", codes, numbers["codeword_ids"], atol=0.0)
    mask = jnp.asarray(numbers["mask"])

    @jax.jit
    def mean_loss(params, projected):
        hidden = apply(model, params, projected, mask=mask, method="encode").output
        logits = apply(model, params, hidden, method="predict")
        return jnp.mean(prediction_loss(logits, codes, mask))

    yield relative("loss", mean_loss(state.params, projected), numbers["loss_0"])
    mean = numbers["loss_per_masked_frame"].mean()
    yield relative("golden loss of masked frames", mean, numbers["loss_0"])


def three_updates(*, scan_layers: bool = True) -> Iterator[Comparison]:
    """Losses, norms, codebooks, and all weights after the third."""
    numbers, fields = golden(), golden_config().to_dict()
    fields["model"]["scan_layers"] = scan_layers
    config = parse(fields)
    step = jax.jit(
        make_train_step(config, sample_mask=lambda *_, **__: jnp.asarray(numbers["mask"]))
    )
    batch = Batch(jnp.asarray(numbers["waveforms"]))
    now = golden_state()
    for k in range(3):
        now, metrics = step(now, batch)
        yield relative(f"loss_{k}", metrics["loss"].mean(), numbers[f"loss_{k}"])
        for part in ("sums", "counts"):
            key = f"codebook_{part}_{k}"
            yield Comparison(key, getattr(now.codebook, part), numbers[key])
        if k == 0:
            yield relative("gradient norm", metrics["gradient_norm"], numbers["grad_norm"])
            for ours, theirs in (("target", "target_ppl"), ("prediction", "pred_ppl")):
                found = metrics[f"{ours}_perplexity"].mean()
                yield relative(f"{ours} perplexity", found, numbers[theirs][0])
    found = fairseq.from_state(now, config=config)
    expected = golden("tiny_weights_after_3_steps")
    assert found.keys() == expected.keys()
    for name in expected:
        yield Comparison(f"{name} after 3 updates", found[name], expected[name])


def gradients() -> Iterator[Comparison]:
    """Of the first update: mask embedding, first convolution, first head."""
    numbers, state = golden(), golden_state()
    model = make_model(golden_config())
    mask, codes = jnp.asarray(numbers["mask"]), jnp.asarray(numbers["codeword_ids"])

    def loss(params):
        projected = apply(model, params, jnp.asarray(numbers["waveforms"]), method="project")
        hidden = apply(model, params, projected, mask=mask, method="encode").output
        logits = apply(model, params, hidden, method="predict")
        return jnp.mean(prediction_loss(logits, codes, mask))

    found = jax.jit(jax.grad(loss))(state.params)
    embedding = found["mask_embedding"]["embedding"]
    yield Comparison("grad_mask_embedding", embedding, numbers["grad_mask_embedding"])
    conv = found["feature_encoder"]["conv_0"]["kernel"].transpose(2, 1, 0)
    yield Comparison("grad_conv0", conv, numbers["grad_conv0"])
    yield Comparison("grad_head0", found["heads"]["kernel"][0].T, numbers["grad_head0"])
