"""The objectives beside DinoSR's own: their losses, what learns, and every way to compute them."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinosr_jax.data.prepare.audio_folder import prepare
from dinosr_jax.inference.pretrained import load
from dinosr_jax.objective.objectives import OBJECTIVES
from dinosr_jax.objective.teacher import teacher_parts
from dinosr_jax.training.optimizer import make_optimizer
from dinosr_jax.training.state import Batch, init_state, make_model
from dinosr_jax.training.step import apply, make_train_step
from dinosr_jax.training.validation import make_eval_step
from tests.training.test_step import close_runs, moved, noise, tiny_config, train
from tests.transcribed_prompts import write_prompts

pytestmark = pytest.mark.usefixtures("compile_quickly")

NO_DROPOUT = {"model__dropout": 0.0, "model__attention_dropout": 0.0, "model__layerdrop": 0.0}
OTHERS = ["spidr", "data2vec"]
SPIDR_FIRST = ["spidr", pytest.param("data2vec", marks=pytest.mark.slow)]
SIZE, FRAMES = 4, 24


def config_of(objective, **changes):
    return tiny_config(objective=objective, **(NO_DROPOUT | changes))


def fixed_mask(key, num_frames, *, frames, **options):
    """The same mask whatever the key: every utterance has another number of masked frames."""
    del key, num_frames, options
    return jnp.asarray(np.random.default_rng(9).random((SIZE, frames)) < 0.5)


class Case:
    """An objective's network, whose teacher is another, on one batch; tensors in float64."""

    def __init__(self, objective):
        self.config = config_of(objective)
        self.model = make_model(self.config)
        state = jax.jit(lambda: init_state(self.config, optimizer=make_optimizer(self.config)))()
        shifted = jax.tree.map(
            lambda x: x + 0.05 * jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape),
            teacher_parts(state.params, scope="encoder"),
        )
        heads = jax.tree.map(lambda x: 3 * x, state.params["heads"])
        self.state = state.replace(params=state.params | {"heads": heads}, teacher_params=shifted)
        self.batch = Batch(jnp.asarray(noise(size=SIZE)))
        self.mask = np.asarray(fixed_mask(None, None, frames=FRAMES))

        def layers(params, teacher, waveforms, mask):
            projected = apply(self.model, params, waveforms, method="project")
            of = lambda p, mask: apply(
                self.model, p, projected, mask=mask, all_layers=True, method="encode"
            )
            return of(params, mask), of({**params, **teacher}, None)

        self.step = jax.jit(make_train_step(self.config, sample_mask=fixed_mask))
        self.new, self.metrics = self.step(self.state, self.batch)
        found = jax.jit(layers)(self.state.params, shifted, self.batch.waveforms, self.mask)
        self.student, self.teacher = jax.tree.map(lambda x: np.asarray(x, np.float64), found)
        self.heads = jax.tree.map(lambda x: np.asarray(x, np.float64), self.state.params["heads"])


@pytest.fixture(scope="module", params=OTHERS)
def case(request):
    return Case(request.param)


def targets_of(case):
    """[N, B, T, D]: the teacher's top `ffn`, normalised over time."""
    top = case.teacher.ffn[-case.config.model.num_codebooks :]
    mean, variance = top.mean(2, keepdims=True), top.var(2, keepdims=True)
    return (top - mean) / np.sqrt(variance + 1e-5)


def spidr_losses(case):
    """Cross-entropy of the heads, each on the `ffn` of its own layer, in plain NumPy."""
    book, first = case.state.codebook, case.config.model.num_layers - 2
    found = []
    for k, targets in enumerate(targets_of(case)):
        words = np.float64(book.sums[k]) / np.float64(book.counts[k])[:, None]
        losses = []
        for b, t in np.argwhere(case.mask):
            code = np.argmin([np.sum((targets[b, t] - word) ** 2) for word in words])
            logits = case.student.ffn[first + k, b, t] @ case.heads["kernel"][k]
            logits = logits + case.heads["bias"][k]
            losses.append(
                np.log(np.sum(np.exp(logits - logits.max()))) + logits.max() - logits[code]
            )
        found.append(np.mean(losses))
    return found


def data2vec_losses(case):
    """Squared error of the linear map of the last layer over sqrt(D), in plain NumPy."""
    wanted, losses = targets_of(case).mean(0), []
    for b, t in np.argwhere(case.mask):
        predicted = case.student.output[b, t] @ case.heads["kernel"][0] + case.heads["bias"][0]
        losses.append(np.sum((predicted - wanted[b, t]) ** 2) / np.sqrt(wanted.shape[-1]))
    return np.mean(losses)


def test_the_loss_is_that_of_a_transcription(case):
    expected = {"spidr": spidr_losses, "data2vec": data2vec_losses}[case.config.objective](case)
    np.testing.assert_allclose(case.metrics["loss"], expected, rtol=2e-5)
    evaluate = jax.jit(make_eval_step(case.config, sample_mask=fixed_mask))
    found = evaluate(case.state, case.batch, jnp.asarray(0)).prediction
    frames = case.mask.sum()
    np.testing.assert_allclose(np.asarray(found.loss) / frames, expected, rtol=2e-5)


def test_the_gradient_is_that_of_the_loss_while_targets_stand_still(case):
    """Along directions in the encoder and the heads, by differences of the loss."""
    mu = case.new.opt_state.inner[0].mu
    for part in ("encoder", "heads"):
        gradient = jax.tree.map(lambda x: np.asarray(x) / 0.1, mu[part])  # (1 - b1) of the first
        size = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(gradient)))
        losses = []
        for sign in (-1, 1):
            by = lambda p, g, s=sign / size: p + 0.02 * s * g
            params = case.state.params | {part: jax.tree.map(by, case.state.params[part], gradient)}
            _, metrics = case.step(case.state.replace(params=params), case.batch)
            losses.append(float(np.mean(metrics["loss"])))
        np.testing.assert_allclose((losses[1] - losses[0]) / 0.04, size, rtol=0.02)


def test_what_the_objective_does_not_use_stays_as_it_is(case):
    """Of SpidR the last layer's last LayerNorm, which no head reads; nothing of data2vec."""
    old, new = case.state.params, case.new.params
    assert len(moved(old, new)) == len(jax.tree.leaves(old))
    for name in ("scale", "bias"):
        pair = [p["encoder"]["layers"]["ffn_layer_norm"][name] for p in (old, new)]
        layers = np.any(np.asarray(pair[0]) != np.asarray(pair[1]), axis=-1)
        assert layers.tolist() == [True, True, case.config.objective != "spidr"]
    assert (case.new.codebook is None) == (case.config.objective == "data2vec")
    if case.new.codebook is not None:
        assert len(moved(case.state.codebook, case.new.codebook)) == 2


def test_a_head_of_spidr_teaches_nothing_above_its_layer():
    """The loss of the first head alone, by the `ffn` that it reads."""
    case = Case("spidr")

    def loss(params):
        hidden = apply(
            case.model,
            params,
            apply(case.model, params, case.batch.waveforms, method="project"),
            mask=case.mask,
            method="read",
        )
        logits = apply(case.model, params, hidden, method="predict")
        return jnp.sum(jax.nn.log_softmax(logits[0])[..., 0])

    gradients = jax.jit(jax.grad(loss))(case.state.params)
    layers = gradients["encoder"]["layers"]
    reached = {
        jax.tree_util.keystr(path): [bool(np.any(layer)) for layer in np.asarray(leaf)]
        for path, leaf in jax.tree_util.tree_leaves_with_path(layers)
        if "key']['bias" not in jax.tree_util.keystr(path)  # which softmax takes away
    }
    for name, found in reached.items():
        assert found == [True, "ffn_layer_norm" not in name, False], name
    assert [bool(np.any(k)) for k in gradients["heads"]["kernel"]] == [True, False]


def test_metrics_of_a_regression_are_those_of_its_frames():
    case = Case("data2vec")
    wanted = targets_of(case).mean(0)[case.mask]  # [M, D]
    error = data2vec_losses(case) * np.sqrt(wanted.shape[-1])
    explained = 1 - error / wanted.var(0).sum()
    np.testing.assert_allclose(case.metrics["explained_variance"], explained, rtol=1e-4)
    np.testing.assert_allclose(case.metrics["target_std"], wanted.std(0).mean(), rtol=1e-4)
    predicted = case.student.output[case.mask] @ case.heads["kernel"][0] + case.heads["bias"][0]
    np.testing.assert_allclose(case.metrics["prediction_std"], predicted.std(0).mean(), rtol=1e-4)
    assert "accuracy" not in case.metrics and "target_perplexity" not in case.metrics


@pytest.mark.parametrize("objective", SPIDR_FIRST)
def test_a_mesh_micro_batches_and_unrolled_layers_give_the_same_updates(objective):
    whole = train(objective=objective, updates=3, **NO_DROPOUT)
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    other = {"model__remat": "full", "model__scan_layers": False}
    other |= {"optimizer__accumulation_steps": 2, "data__batch_multiple": 16}
    found = train(
        objective=objective, start=whole.states[0], updates=3, **mesh, **other, **NO_DROPOUT
    )
    close_runs(found, whole)


@pytest.mark.parametrize("objective", SPIDR_FIRST)
def test_bfloat16_computes_the_same_loss_nearly(objective):
    losses = []
    for dtype in ("float32", "bfloat16"):
        run = train(objective=objective, updates=1, compute_dtype=dtype, **NO_DROPOUT)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(run.states[1].params)} == {"float32"}
        losses.append(np.mean(run.metrics[0]["loss"]))
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.01)
    assert losses[0] != losses[1]


def test_biases_that_the_network_does_not_have_stay_zero():
    run = train(objective="spidr", updates=2, model__qkv_bias=False, **NO_DROPOUT)
    attention = run.states[2].params["encoder"]["layers"]["attention"]
    for name in ("query", "key", "value"):
        assert not np.any(attention[name]["bias"])
    assert np.all(attention["output"]["bias"])


def test_objectives_are_those_of_the_field():
    from dinosr_jax.recipes import FIELDS

    assert all(FIELDS["objective"].check.holds(name) for name in OBJECTIVES)
    assert set(FIELDS["objective"].check.expected.removeprefix("one of ").split(", ")) == set(
        OBJECTIVES
    )


def test_parameters_of_dinosr_and_spidr_have_one_layout_and_of_data2vec_another_head():
    states = {}
    for objective in OBJECTIVES:
        config = config_of(objective)
        init = lambda c=config: init_state(c, optimizer=make_optimizer(c))
        states[objective] = jax.eval_shape(init)
    shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)
    assert shapes(states["dinosr"]) == shapes(states["spidr"])
    other = shapes(states["data2vec"].params)
    assert other.pop("heads") == {"kernel": (1, 32, 32), "bias": (1, 32)}
    kept = shapes(states["dinosr"].params)
    assert kept.pop("heads")["kernel"] == (2, 32, 16) and kept == other


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("prepared")
    write_prompts(source)
    prepare(source, data_dir=folder)
    return folder


def flags(objective, data_dir, workdir, steps):
    given = {"objective": objective, "model.layerdrop": 0.0, "num_steps": steps, "eval_steps": 4}
    given |= {"data.data_dir": data_dir, "data.min_seconds": 0.1, "data.max_rungs": 1}
    given |= {"eval_batches": 1, "checkpoint_steps": 2}
    config = Path(__file__).parents[2] / "configs" / "tiny.py"
    return [f"--config={config}", f"--workdir={workdir}"] + [
        f"--config.{name}={value}" for name, value in given.items()
    ]


def losses_of(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {record["step"]: record["loss"] for record in map(json.loads, lines)}


@pytest.mark.parametrize("objective", SPIDR_FIRST)
def test_a_run_is_evaluated_goes_on_and_keeps_its_objective(
    objective, data_dir, run_main, tmp_path
):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert run_main(*flags(objective, data_dir, whole, 4)) is None
    last = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    assert np.isfinite(last["eval_loss"])
    expected = {"spidr": "eval_target_perplexity", "data2vec": "eval_explained_variance"}
    assert {name for name in expected.values() if name in last} == {expected[objective]}
    trained = load(whole)
    assert (trained.codebook is None) == (objective == "data2vec")
    other = "dinosr" if objective == "data2vec" else "data2vec"
    said = run_main(*flags(other, data_dir, whole, 6))
    assert f"config.objective: the checkpoint has '{objective}', asked for is '{other}'" in said
    said = run_main(
        *flags(other, data_dir, tmp_path / "fine", 6), "--config.task=ctc", f"--config.init={whole}"
    )
    assert f"config.objective: found '{other}', but {whole} was trained with" in said
    assert not (tmp_path / "fine" / "metrics.jsonl").exists()
    if objective == "spidr":
        for steps in (2, 4):
            assert run_main(*flags(objective, data_dir, halves, steps)) is None
        assert losses_of(halves) == losses_of(whole)
