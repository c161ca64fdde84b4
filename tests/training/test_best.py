import types

import numpy as np
import pytest

from dinosr_jax.training.best import Best
from dinosr_jax.training.checkpoint import Checkpoints

ABOUT = lambda step: {"config": {"seed": 1}, "data": {"fingerprint": "f", "next_step": step}}


def offers(folder, figures, *, first=1):
    best = Best(folder, fields=("wer", "cer"))
    found = []
    for step, (wer, cer) in enumerate(figures, start=first):
        state = {"x": np.full(3, float(step))}
        found.append(best.offer(step, state, {"wer": wer, "cer": cer}, ABOUT))
    best.close()
    return found


def kept(folder):
    checkpoints = Checkpoints(folder, read_only=True)
    (step,), data = checkpoints.steps(), checkpoints.newest_data()
    checkpoints.close()
    return step, data


def test_the_least_is_kept_and_known_to_a_run_that_goes_on(tmp_path):
    assert offers(tmp_path, [(0.9, 0.5), (0.8, 0.6), (0.8, 0.6), (0.85, 0.1)]) == [
        True, True, False, False,
    ]  # fmt: skip
    step, data = kept(tmp_path)
    assert step == 2 and data["metrics"] == {"wer": 0.8, "cer": 0.6} and data["next_step"] == 2
    assert offers(tmp_path, [(0.8, 0.6), (0.8, 0.5)], first=5) == [False, True]
    assert kept(tmp_path)[0] == 6


@pytest.mark.parametrize("wer", [float("nan")])
def test_what_is_no_number_is_not_better(tmp_path, wer):
    assert offers(tmp_path, [(0.5, 0.5), (wer, 0.1)]) == [True, False]


def test_states_are_copied_before_the_offer_returns(tmp_path):
    best, state = Best(tmp_path, fields=("wer",)), types.SimpleNamespace(x=np.ones(4))
    best.offer(1, {"x": state.x}, {"wer": 0.1}, ABOUT)
    state.x[:] = 7  # the next update writes over it
    best.close()
    checkpoints = Checkpoints(tmp_path, read_only=True)
    like = {"x": np.zeros(4)}
    assert checkpoints.restore_latest(like).state["x"].tolist() == [1, 1, 1, 1]
    checkpoints.close()
