"""Errors of a recogniser on held-out speech, against plain Python."""

import types

import jax
import numpy as np
import pytest

from dinosr_jax.data.vocabulary import letters
from dinosr_jax.model.feature_encoder import num_frames
from dinosr_jax.objective.ctc import best_path
from dinosr_jax.training.compiled import Programs
from dinosr_jax.training.ctc.step import make_recognition_step
from dinosr_jax.training.ctc.word_errors import Counts, WordErrors, marked
from dinosr_jax.training.state import Batch
from tests.training.ctc.test_step import arrays_of, config_of
from tests.update_runs import on_mesh

pytestmark = pytest.mark.usefixtures("compile_quickly")


def distance(a, b):
    """Edit distance, by its definition."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


def test_counts():
    found = Counts().plus("THE CAT SAT", "A CAT SAT ON", of_characters=True)
    assert found[:3] == (1, 3, 2)
    assert found[3:] == (11, distance("THE CAT SAT", "A CAT SAT ON"))
    found = found.plus("", "X", of_characters=True)
    letters_ = distance("THE CAT SAT", "A CAT SAT ON") + 1
    assert found[:3] == (2, 3, 3) and found.letter_errors == letters_
    phones = Counts().plus("dh ah k", "dh k", of_characters=False)
    assert phones == (1, 3, 1, 3, 1)


def test_differences_are_marked():
    assert marked("THE CAT SAT".split(), "A CAT SAT ON".split()) == (
        "ref *THE* CAT SAT ----",
        "hyp *A*   CAT SAT *ON*",
    )
    assert marked([], []) == ("ref", "hyp")
    assert marked(["A"], []) == ("ref *A*", "hyp ---")


class HeldOut:
    """Two batches, whose last rows are empty."""

    batches_per_epoch = 2
    references = {f"{k}-{row}": "HELLO WORLD" for k in range(2) for row in range(7)}

    def batches(self, start_step, num_steps, *, share):
        for k in range(start_step, start_step + num_steps):
            ids = [*(f"{k}-{row}" for row in range(7)), ""]
            arrays = arrays_of(seed=k)
            yield types.SimpleNamespace(arrays=arrays, ids=ids, num_samples=arrays["num_samples"])


@pytest.mark.parametrize("devices", [1, 8])
def test_rates_are_those_of_every_utterance(devices):
    config = config_of(mesh__data=devices)
    mesh, abstract, make = on_mesh(config)
    state = make()
    errors = WordErrors(config, mesh, abstract, Programs(lambda text: None), eval_data=HeldOut())
    found = errors.measure(state)

    step, host = make_recognition_step(config), jax.device_get(state)
    words = letters_ = loss = 0
    for k in range(2):
        arrays = arrays_of(seed=k)
        one = jax.jit(step)(host, Batch(**arrays))
        frames = num_frames(arrays["num_samples"], config.model.conv_layers)
        for row in range(7):
            text = letters().decode(best_path(np.asarray(one.codes)[row, : frames[row]]))
            words += distance(["HELLO", "WORLD"], text.split())
            letters_ += distance("HELLO WORLD", text)
            loss += float(one.loss[row])
    assert found["eval_num_utterances"] == 14
    assert found["eval_wer"] == words / 28 and found["eval_cer"] == letters_ / (14 * 11)
    assert found["eval_loss"] == pytest.approx(loss / 14, rel=1e-5)
    text = errors.summary(3, found)
    assert text.startswith("update 3: held-out loss") and text.count("ref ") == 3
