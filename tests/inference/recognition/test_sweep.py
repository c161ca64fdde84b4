import numpy as np
import pytest

from dinosr_jax.inference.recognition import beam_search as bs
from dinosr_jax.inference.recognition import sweep
from dinosr_jax.inference.recognition.ngram import Bigram
from tests.inference.recognition.test_beam_search import CLOCK, SMALL, emissions_of

pytest.importorskip("flashlight.lib.text", reason="flashlight-text is not there")


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """References are what certain weights recognise: a sweep must find weights as good."""
    path = tmp_path_factory.mktemp("lm") / "lm.arpa"
    path.write_text(Bigram(["A B", "AB A", "B A B", "A AB"]).to_arpa())
    settings = bs.BeamSettings(path, beam=20)
    inputs = [emissions_of(14, seed) for seed in range(8)]
    decoder = bs.BeamSearch(SMALL, CLOCK, settings._replace(lm_weight=0.5, word_score=3.0))
    return sweep.SweepTask(SMALL, CLOCK, settings, inputs, [decoder(x).text for x in inputs])


def test_the_best_weights_are_found(task):
    weights = [(8.0, -5.0), (0.5, 3.0), (2.0, -1.0)]
    found = sweep.sweep(task, weights, num_workers=1)
    assert (found[0].lm_weight, found[0].word_score) == (0.5, 3.0)
    assert found[0].wer == found[0].cer == 0 and found[-1].wer > 0
    assert [t.wer for t in found] == sorted(t.wer for t in found)


def test_processes_find_the_same(task):
    weights, done = sweep.draw(4, seed=1), []
    alone = sweep.sweep(task, weights, num_workers=1)
    assert sweep.sweep(task, weights, num_workers=2, progress=done.append) == alone
    assert sum(done) == 4


def test_draws_are_in_fairseqs_bounds_and_begin_with_its_values():
    found = np.asarray(sweep.draw(200, seed=3))
    assert found[0].tolist() == [2.0, -1.0]
    assert (found.min(0) >= [0, -5]).all() and (found.max(0) <= [8, 5]).all()
    assert np.ptp(found[:, 0]) > 7 and np.ptp(found[:, 1]) > 9
    assert sweep.draw(5, seed=3) == sweep.draw(5, seed=3) != sweep.draw(5, seed=4)


def test_of_equal_word_errors_the_least_character_errors_are_best(task):
    """No word of these references is in the n-gram, and few words are found."""
    weights = [(8.0, -4.0), (4.0, -4.0), (8.0, -2.0)]
    found = sweep.sweep(task._replace(references=["ABAB"] * 8), weights, num_workers=1)
    assert {trial.wer for trial in found} == {1.0}
    assert found[0].cer < found[1].cer < found[2].cer
    assert found[0][:2] == (8.0, -2.0)


def test_empty_references_are_an_error(task):
    with pytest.raises(ValueError, match="empty"):
        sweep.sweep(task._replace(references=[""] * 8), [(1.0, 1.0)])
