"""Updates in bfloat16 beside those in float32: loss, codes, types, micro-batches, devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinosr_jax.objective import codebook as codebooks
from dinosr_jax.training.state import Batch, make_model
from dinosr_jax.training.step import apply, make_train_step, teacher_targets
from tests.update_runs import config_of, run_updates

UPDATES = 50
pytestmark = pytest.mark.usefixtures("compile_quickly")


def waveforms(seed):
    """[16, 8000] of noise whose spectrum differs from utterance to utterance."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(16, 8000))
    for row, weight in zip(noise, rng.uniform(-0.95, 0.95, 16), strict=True):
        row[1:] += weight * row[:-1]
    return (noise / noise.std(axis=1, keepdims=True)).astype(np.float32)


def train(dtype, *, updates, start=None, mesh=(1, 1, 1), count=1):
    """`states` and `metrics` on the host; without dropout, so that nothing else differs."""
    changes = dict(zip(("mesh__data", "mesh__fsdp", "mesh__tensor"), mesh, strict=True))
    rates = ("model__dropout", "model__attention_dropout", "model__layerdrop")
    changes |= dict.fromkeys(rates, 0.0)
    changes |= {"compute_dtype": dtype, "data__batch_multiple": 16}
    changes |= {"optimizer__warmup_steps": 0, "optimizer__accumulation_steps": count}
    arrays_of = lambda k: {"waveforms": waveforms(k % 10)}
    how = {"updates": updates, "start": start}
    return run_updates(config_of(**changes), make_train_step, arrays_of, **how)


@pytest.fixture(scope="module")
def exact():
    return train("float32", updates=UPDATES)


@pytest.fixture(scope="module")
def half(exact):
    return train("bfloat16", updates=UPDATES, start=exact.states[0])


def losses(run):
    return np.array([metrics["loss"].mean() for metrics in run.metrics])


def codes_of(run, state):
    model, batch = make_model(run.config), Batch(jnp.asarray(waveforms(99)))
    projected = apply(model, state.params, batch.waveforms, method="project")
    targets = teacher_targets(run.config, model, state.teacher_params, projected, batch)
    return np.asarray(codebooks.assign(state.codebook, targets))


def test_one_update_is_that_of_float32(exact, half):
    np.testing.assert_allclose(losses(half)[0], losses(exact)[0], rtol=2e-3)
    assert losses(half)[0] != losses(exact)[0]  # bfloat16 it is
    for name in ("gradient_norm", "update_norm", "teacher_std", "target_perplexity"):
        a, b = (np.mean(run.metrics[0][name]) for run in (half, exact))
        np.testing.assert_allclose(a, b, rtol=0.05, err_msg=name)
    start, codebook = half.states[0].codebook, half.states[1].codebook
    moved = np.abs(exact.states[1].codebook.counts - start.counts).sum()
    apart = np.abs(exact.states[1].codebook.counts - codebook.counts).sum()
    assert apart < 0.05 * moved


@pytest.mark.slow
def test_codes_are_those_of_float32(exact, half):
    first = [codes_of(run, exact.states[0]) for run in (exact, half)]
    assert np.mean(first[0] == first[1]) > 0.95
    # of the same trained state
    last = [codes_of(run, exact.states[-1]) for run in (exact, half)]
    assert np.mean(last[0] == last[1]) > 0.95


def test_fifty_updates_follow_float32(exact, half):
    a, b = losses(exact), losses(half)
    assert a[-10:].mean() < a[:10].mean() - 0.05  # something is learnt
    np.testing.assert_allclose(b[:15], a[:15], rtol=0.02)
    # later, rounding has made two runs of it, as another seed would
    np.testing.assert_allclose(b, a, rtol=0.08)
    np.testing.assert_allclose(b[-20:].mean(), a[-20:].mean(), rtol=0.05)
    ppl = [np.mean([m["target_perplexity"] for m in r.metrics[-10:]]) for r in (exact, half)]
    np.testing.assert_allclose(ppl[1], ppl[0], rtol=0.1)


def test_everything_but_the_computation_stays_float32(exact, half):
    old = jax.tree_util.tree_leaves_with_path(exact.states[-1])
    for (path, leaf), new in zip(old, jax.tree.leaves(half.states[-1]), strict=True):
        assert new.dtype == leaf.dtype != jnp.bfloat16, jax.tree_util.keystr(path)
        assert np.isfinite(new).all()
    for metrics in (half.metrics[0], half.metrics[-1]):
        assert {np.asarray(value).dtype for value in metrics.values()} <= {
            np.dtype("float32"), np.dtype("int32"),
        }  # fmt: skip
        assert all(np.isfinite(value).all() for value in metrics.values())
    # codebook and teacher move by less than a step of bfloat16, and do move
    old, new = half.states[-2], half.states[-1]
    change = np.abs(new.teacher_params["encoder"]["layer_norm"]["scale"] - 1).max()
    assert 0 < change < 2**-8
    assert (old.codebook.sums != new.codebook.sums).any()


@pytest.mark.parametrize(
    ("count", "mesh"),
    [
        pytest.param(4, (1, 1, 1), marks=pytest.mark.slow),
        (1, (8, 1, 1)),
        pytest.param(2, (2, 2, 2), marks=pytest.mark.slow),
    ],
    ids=["micro-batches", "8 devices", "both, on three axes"],
)
def test_micro_batches_and_devices_change_no_more_than_rounding(exact, half, count, mesh):
    other = train("bfloat16", updates=3, start=exact.states[0], count=count, mesh=mesh)
    np.testing.assert_allclose(losses(other), losses(half)[:3], rtol=0.01)
    norms = [[m["gradient_norm"] for m in run.metrics[:3]] for run in (other, half)]
    np.testing.assert_allclose(*norms, rtol=0.05)
    a, b = (run.states[3].codebook.counts for run in (other, half))
    assert np.abs(a - b).sum() < 0.05 * np.abs(b - half.states[0].codebook.counts).sum()
    for leaf in jax.tree.leaves((other.states[3].params, other.states[3].opt_state)):
        assert leaf.dtype != jnp.bfloat16
