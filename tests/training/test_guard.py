"""The guard against collapse, on runs that really collapse, and on healthy ones."""

import json
import re
import types

import numpy as np
import pytest

from dinosr_jax.inference.pretrained import load
from dinosr_jax.training.guard import Guard
from dinosr_jax.training.loop import TrainingError, train
from tests.update_runs import config_of

pytestmark = pytest.mark.usefixtures("compile_quickly", "compile_once")


class Noise:
    """Endless batches of half a second of noise."""

    fingerprint = "noise"
    batches_per_epoch = 10

    def batches(self, start_step, num_steps, *, share):
        for step in range(start_step, start_step + num_steps):
            waveforms = np.random.default_rng(step).normal(size=(8, 8000)).astype(np.float32)
            ids = [str(k) for k in range(8)]
            arrays = {"waveforms": waveforms}
            yield types.SimpleNamespace(arrays=arrays, ids=ids, num_bad=0)

    def samples(self, step):
        return 8 * 8000


def short_run(workdir, data=None, **changes):
    fields = {"num_steps": 12, "checkpoint_steps": 100, "eval_steps": 4, "mesh__data": 1}
    fields |= {"model__num_layers": 2, "optimizer__warmup_steps": 0, "model__dropout": 0.0}
    fields |= {"model__conv_layers": ((16, 20, 10), (16, 8, 8), (16, 4, 4))}
    fields |= {"model__attention_dropout": 0.0, "model__layerdrop": 0.0}
    fields |= {"guard__after_steps": 2, "guard__patience_steps": 3, "guard__action": "stop"}
    config = config_of(**fields | changes)
    return train(config, workdir=workdir, train_data=data or Noise(), eval_data=None)


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {record["step"]: record["loss"] for record in map(json.loads, lines)}


def test_a_run_that_collapses_is_stopped_and_goes_on_when_it_is_told_to(tmp_path, capsys):
    collapsing = {"optimizer__learning_rate": 0.3}  # the feature encoder dies in three updates
    with pytest.raises(TrainingError) as raised:
        short_run(tmp_path, **collapsing)
    message = str(raised.value)
    stopped = max(losses(tmp_path))
    assert losses(tmp_path)[stopped] < 2.5 and stopped < 9  # chance is 2.8
    assert (tmp_path / "checkpoints" / str(stopped)).is_dir()
    assert f"Stopped after update {stopped}, whose checkpoint is saved" in message
    assert re.search(r"target_perplexity_0: 1\.\d\d, the bound is 3\.25; since update 3", message)
    assert "target_perplexity_1: 1." in message and "codeword_use_1: 12.5%" in message
    assert "teacher_std: 0.0" in message
    assert "config.teacher.scope='full'" in message and "learning_rate 0.3" in message
    assert "another --workdir" in message and "--config.guard.action=warn" in message
    capsys.readouterr()
    assert short_run(tmp_path, **collapsing, guard__action="warn", num_steps=stopped + 8) > stopped
    said = capsys.readouterr().err
    assert said.count("COLLAPSE at update") == 2  # after patience_steps, and eval_steps later
    # what was said before the stop counts: again after eval_steps updates
    assert f"COLLAPSE at update {stopped + 4}" in said
    assert list(losses(tmp_path)) == list(range(1, stopped + 9))


class Killed(BaseException):
    pass


class KilledNoise(Noise):
    """Noise of a run that is killed before an update."""

    def __init__(self, step):
        self._step = step

    def batches(self, start_step, num_steps, *, share):
        batches = super().batches(start_step, num_steps, share=share)
        for step, batch in enumerate(batches, start_step):
            if step == self._step:
                raise Killed
            yield batch


ALWAYS_COLLAPSED = {"guard__min_target_std": 1e9, "guard__patience_steps": 5}  # seen at update 7


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that is stopped by the guard, never killed, and what is said."""
    workdir = tmp_path_factory.mktemp("stopped")
    with pytest.raises(TrainingError) as raised:
        short_run(workdir, checkpoint_steps=2, **ALWAYS_COLLAPSED)
    return workdir, str(raised.value)


def whole_records(workdir):
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in r.items() if k != "audio_seconds_per_second"} for r in records]


@pytest.mark.slow
@pytest.mark.parametrize("kill", [5, 7])
def test_a_resumed_run_is_stopped_where_an_unbroken_one_is(stopped, tmp_path, kill):
    workdir, message = stopped
    assert "COLLAPSE at update 7" in message and "since update 3" in message
    assert "Stopped after update 8" in message and max(losses(workdir)) == 8
    how = {"checkpoint_steps": 2, **ALWAYS_COLLAPSED}
    with pytest.raises(Killed):
        short_run(tmp_path, KilledNoise(kill), **how)
    with pytest.raises(TrainingError) as raised:
        short_run(tmp_path, **how)
    assert str(raised.value) == message
    assert whole_records(tmp_path) == whole_records(workdir)
    assert load(tmp_path).fingerprint == load(workdir).fingerprint


def test_a_collapse_that_a_checkpoint_sees_stops_there(stopped, tmp_path):
    with pytest.raises(TrainingError, match="COLLAPSE at update 7"):
        short_run(tmp_path, checkpoint_steps=7, **ALWAYS_COLLAPSED)
    assert max(losses(tmp_path)) == 7 and load(tmp_path).step == 7


def test_a_healthy_run_is_left_alone(tmp_path, capsys):
    assert short_run(tmp_path, optimizer__learning_rate=1e-4, num_steps=8) == 8
    assert "COLLAPSE" not in capsys.readouterr().err


def record_of(step=100, *, codebooks=3, **fields):
    """An update of a healthy run, but for `fields`."""
    record = {"step": step, "loss": 2.0, "accuracy": 0.3, "target_perplexity": 30.0}
    record |= {"codeword_use": 0.8, "teacher_std": 0.5, "feature_encoder_std": 0.3}
    for name in ("target_perplexity", "codeword_use"):
        record |= {f"{name}_{k}": record[name] for k in range(codebooks)}
    return record | fields


def guard_of(name="quickstart", **changes):
    guard = {"guard__after_steps": 0, "guard__patience_steps": 1}
    return Guard(config_of(name, **guard | changes))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        # METHOD's table of small runs: collapsed with a perplexity of 7 and 6 of 64 codewords
        ({"target_perplexity_1": 7.0}, "target_perplexity_1: 7.00, the bound is 10.45"),
        ({"target_perplexity_2": 6.0, "loss": 0.26}, "target_perplexity_2: 6.00"),
        ({"codeword_use_0": 0.19}, "codeword_use_0: 19.0%, the bound is 20.0%"),
        ({"teacher_std": 0.09}, "teacher_std: 0.09, the bound is 0.1"),
        ({"feature_encoder_std": 0.009}, "feature_encoder_std: 0.009, the bound is 0.01"),
    ],
)
def test_every_bound_is_seen_and_named_alone(fields, words):
    text = guard_of().check(record_of(**fields), frames=900.0)
    assert words in text and "by 1 of the bounds" in text and "since update 100" in text


@pytest.mark.parametrize("perplexity", [26.0, 21.0, 10.5])
def test_small_healthy_runs_are_left_alone(perplexity):
    record = record_of(**{f"target_perplexity_{k}": perplexity for k in range(3)})
    assert guard_of().check(record, frames=900.0) is None


def test_the_published_run_is_healthy_and_a_collapse_to_two_codes_is_not():
    sizes = {"target_perplexity": 159.0, "codeword_use": 0.6}
    record = record_of(codebooks=8, **sizes) | {f"target_perplexity_{k}": 80.0 for k in range(8)}
    assert guard_of("base").check(record, frames=1e5) is None
    record["target_perplexity_7"] = 2.0
    text = guard_of("base").check(record, frames=1e5)
    assert "target_perplexity_7: 2.00, the bound is 39.25" in text and "bfloat16" in text


def test_a_batch_of_few_frames_is_not_expected_to_use_all_codewords():
    record = record_of(codebooks=8, **{f"target_perplexity_{k}": 30.0 for k in range(8)})
    record |= {f"codeword_use_{k}": 0.15 for k in range(8)}
    assert "by 16 of the bounds" in guard_of("base").check(record, frames=1e5)
    assert guard_of("base").check(record, frames=300.0) is None
    record |= {f"target_perplexity_{k}": 1.0 for k in range(8)}
    assert "by 8 of the bounds" in guard_of("base").check(record, frames=300.0)


def test_tiny_codebooks_have_a_bound_that_can_be_reached():
    for size in (2, 4, 8):
        record = record_of(**{f"target_perplexity_{k}": 1.0 for k in range(3)})
        text = guard_of(model__codebook_size=size).check(record, frames=900.0)
        assert "target_perplexity_0" in text


def alarms(guard, collapsed):
    """Updates at which something is said; `collapsed` are those that are under a bound."""
    std = lambda step: 0.0 if step in collapsed else 0.5
    records = (record_of(step, teacher_std=std(step)) for step in range(1, 60))
    return [r["step"] for r in records if guard.check(r, frames=900.0) is not None]


def test_patience_start_and_repetition():
    named = lambda changes: {f"guard__{k}": v for k, v in changes.items()}
    guard = lambda **changes: guard_of(eval_steps=20, **named(changes))
    assert alarms(guard(patience_steps=5), range(10, 60)) == [14, 34, 54]
    assert alarms(guard(patience_steps=5), {*range(10, 14), *range(15, 19)}) == []
    assert alarms(guard(patience_steps=3, after_steps=30), range(10, 60)) == [33, 53]
    assert alarms(guard(patience_steps=3, after_steps=100), range(10, 60)) == []


def test_zero_switches_a_bound_off():
    names = ("target_std", "feature_std", "target_perplexity", "codeword_use")
    off = guard_of(**{f"guard__min_{name}": 0.0 for name in names})
    fields = {name: 0.0 for name in record_of() if name != "step"}
    assert off.check(record_of(**fields), frames=900.0) is None
    assert "by 8 of the bounds" in guard_of().check(record_of(**fields), frames=900.0)


def test_where_it_stops_the_run_it_says_so_again_at_once():
    guard = guard_of(eval_steps=20, guard__patience_steps=5, guard__action="stop")
    assert alarms(guard, range(10, 60)) == list(range(14, 60))


@pytest.mark.parametrize("action", ["warn", "stop"])
@pytest.mark.parametrize("at", [3, 11, 13, 14, 20, 33, 34, 58])
def test_a_guard_that_is_resumed_says_what_an_unbroken_one_says(at, action):
    changes = {"eval_steps": 20, "guard__patience_steps": 5, "guard__action": action}
    collapsed, expected = {*range(10, 40), *range(42, 60)}, []
    first, second = guard_of(**changes), guard_of(**changes)
    whole = alarms(guard_of(**changes), collapsed)
    for step in range(1, 60):
        guard = first if step <= at else second
        if step == at + 1:
            second.resume(json.loads(json.dumps(first.history())))
        record = record_of(step, teacher_std=0.0 if step in collapsed else 0.5)
        if guard.check(record, frames=900.0) is not None:
            expected.append(step)
    assert expected == whole != []


def test_a_checkpoint_of_before_has_no_history():
    guard = guard_of(guard__patience_steps=5)
    guard.resume(None)
    assert alarms(guard, range(10, 20)) == [14]
