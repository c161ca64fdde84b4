"""The benchmark that compares learning with a PyTorch peer: a few updates, and what it says."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from benchmarks import learning_curve  # noqa: E402
from dinosr_jax.config import parse  # noqa: E402
from dinosr_jax.training.state import TrainState  # noqa: E402
from dinosr_jax.training.step import codebook_decay, make_schedule, teacher_decay  # noqa: E402

pytestmark = pytest.mark.usefixtures("compile_quickly")
UPDATES = 4


def small(kind):
    """Two layers of width 16, and schedules that go through all their stages."""
    config = learning_curve.make_config(kind).to_dict()
    config["model"] |= {"num_layers": 2, "width": 16, "ffn_dim": 32, "num_codebooks": 2}
    config["model"] |= {"conv_layers": ((16, 10, 5), (16, 8, 8), (16, 8, 8)), "codebook_size": 8}
    config["optimizer"] |= {"warmup_steps": 2, "hold_steps": 1, "decay_steps": 4}
    config["teacher"] |= {"decay_steps": 3, "decay": 0.5, "end_decay": 0.9}
    config["codebook"] |= {"decay_steps": 3}
    return parse(config)


@pytest.mark.parametrize("kind", ["encoder", "full"])
def test_both_sides_make_the_same_updates(kind):
    config, random = small(kind), np.random.default_rng(0)
    state = learning_curve.first_state(config, seed=1)
    assert isinstance(state, TrainState)
    ours = learning_curve.make_jax(config, jax.device_get(state), seed=0)
    theirs = learning_curve.make_peer(config, state, seed=0)
    exact = learning_curve.make_peer(config, state, seed=0, dtype=torch.float64)
    losses = []
    for _ in range(UPDATES):
        waveforms = random.standard_normal((3, 8_000), np.float32)
        mask = random.random((3, 24)) < 0.5
        found = [step(waveforms, mask) for step in (ours, theirs, exact)]
        for name in ("loss", "target_perplexity"):
            values = [side[name] for side in found]
            np.testing.assert_allclose(values[:2], values[2], rtol=1e-5, err_msg=name)
        losses.append(found[0]["loss"])
    assert len(set(losses)) == UPDATES and 1 < found[0]["target_perplexity"] <= 8


def test_the_peers_schedules_are_those_of_the_configuration():
    config = learning_curve.make_config("full")
    schedule = make_schedule(config)
    for step in (0, 1, 49, 50, 51, 150, 199, 200, 201, 250, 299, 300, 400):
        rate = learning_curve.learning_rate(config, step)
        np.testing.assert_allclose(rate, schedule(step), rtol=1e-5)
        decay = learning_curve.ema_decay(config, step + 1)
        np.testing.assert_allclose(decay, teacher_decay(config, np.int32(step + 1)), atol=1e-7)
        decay = learning_curve.codebook_decay(config, step)
        np.testing.assert_allclose(decay, codebook_decay(config, np.int32(step)), atol=1e-7)


def invented(differ):
    """Curves of all runs: seeds are 0.1 apart, and the peer's losses `differ` from ours."""
    steps = np.arange(learning_curve.UPDATES)
    curves = {}
    for run in learning_curve.RUNS:
        loss = 4 - steps / 200 + 0.1 * run.seed + (differ if run.side == "torch" else 0.0)
        curves[run] = {"loss": loss.tolist(), "target_perplexity": (10 * loss).tolist()}
    return curves


def test_sides_are_compared_with_seeds(tmp_path):
    found = learning_curve.compare(invented(0.02))
    assert found.keys() == {"encoder", "full", "dropout"}
    assert found["full"]["exact"] == pytest.approx(0.02 / 3.775, rel=0.01)
    assert found["full"]["loss_sides"] == pytest.approx(0.02)
    assert found["full"]["loss_seeds"] == pytest.approx(0.1)
    assert found["dropout"]["loss_seeds"] == pytest.approx(0.2)
    assert all(row[name] == 1 for row in found.values() for name in row if "within" in name)
    found = learning_curve.compare(invented(0.5))
    assert found["full"]["loss_within"] == found["dropout"]["loss_within"] == 0
    learning_curve.draw(invented(0.02), tmp_path / "a" / "curve.png")
    assert (tmp_path / "a" / "curve.png").read_bytes()[:4] == b"\x89PNG"
