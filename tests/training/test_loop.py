"""Real training processes on real speech: killed, stopped, misconfigured, broken."""

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from dinosr_jax.data.batches.pipeline import open_split
from dinosr_jax.inference.pretrained import load
from dinosr_jax.training.checkpoint import CheckpointError
from dinosr_jax.training.loop import TrainingError, train
from dinosr_jax.training.validation import Evaluation
from tests.main_runs import records, run_main_py, start_main
from tests.prepared_speech import write_parts
from tests.update_runs import config_of

ROOT = Path(__file__).parents[2]
TINY = f"--config={ROOT}/configs/tiny.py"
STEPS = 24


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A minute and a half of real speech, a third of it held out."""
    folder = tmp_path_factory.mktemp("source")
    write_parts(folder, [2.0] * 48, step=32_000, voice="asterisk_it")
    rows = [f"{n:02d}\tcarlo\t{'train' if n % 3 else 'validation'}" for n in range(48)]
    (folder / "transcripts.tsv").write_text("\n".join(["file\tspeaker\tsplit", *rows]) + "\n")
    return folder


def flags_of(data_dir: Path, workdir: Path, *flags: str) -> list[str]:
    fields = {"data.data_dir": data_dir, "num_steps": STEPS, "checkpoint_steps": 4}
    fields |= {"eval_steps": 12, "data.max_rungs": 1, "data.max_seconds": 2.0}
    fields |= {"model.layerdrop": 0.2}
    given = [f"--config.{name}={value}" for name, value in fields.items()]
    return [f"--workdir={workdir}", *given, *flags]


def run(data_dir, workdir, cache, *flags, expect=0):
    return run_main_py(cache, *flags_of(data_dir, workdir, *flags), expect=expect)


@pytest.fixture(scope="module")
def reference(data_dir, cache, tmp_path_factory) -> Path:
    """A run that is never stopped."""
    workdir = tmp_path_factory.mktemp("runs") / "reference"
    run(data_dir, workdir, cache)
    return workdir


def assert_same_run(workdir: Path, reference: Path) -> None:
    assert [record["step"] for record in records(workdir)] == list(range(1, STEPS + 1))
    assert records(workdir) == records(reference)  # bit for bit, every metric of every step
    ours, theirs = load(workdir), load(reference)
    assert ours.step == theirs.step == STEPS
    for name in ("params", "teacher_params", "codebook"):
        pair = getattr(ours, name), getattr(theirs, name)
        assert jax.tree.all(jax.tree.map(np.array_equal, *pair)), name


def test_a_run_writes_what_the_readme_says(reference):
    found = records(reference)
    assert [record["step"] for record in found] == list(range(1, STEPS + 1))
    assert all({"loss", "loss_1", "target_perplexity", "ema_decay"} <= set(r) for r in found)
    assert [r["step"] for r in found if "eval_loss" in r] == [12, 24]
    assert (reference / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((reference / "events").glob("events.*"))
    (started,) = (reference / "environment.jsonl").read_text().splitlines()
    assert json.loads(started)["step"] == 0
    config = json.loads((reference / "config.json").read_text())
    assert config["num_steps"] == STEPS and config["model"]["width"] == 32


@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_at_any_moment_gives_the_same_run(
    data_dir, reference, cache, tmp_path, chance, times
):
    workdir = tmp_path / "killed"
    kills = []
    for _ in range(times):
        process = start_main(cache, *flags_of(data_dir, workdir))
        before = last_step(workdir)
        moment = chance.choice(["step", "save"])
        while process.poll() is None and last_step(workdir) < before + chance.randint(1, 4):
            time.sleep(0.005)
        if moment == "save":  # a folder that is being written
            limit = time.monotonic() + 2
            saving = lambda: list((workdir / "checkpoints").glob("*tmp*"))
            while process.poll() is None and not saving() and time.monotonic() < limit:
                pass
        if process.poll() is None:
            process.kill()
            kills.append((moment, last_step(workdir)))
        process.communicate()
    print("killed at", kills)
    assert kills
    run(data_dir, workdir, cache)
    assert_same_run(workdir, reference)


def last_step(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0


@pytest.mark.slow
def test_sigterm_saves_and_a_larger_num_steps_goes_on(data_dir, reference, cache, tmp_path):
    workdir = tmp_path / "stopped"
    process = start_main(cache, *flags_of(data_dir, workdir))
    while process.poll() is None and last_step(workdir) < 5:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    assert "SIGTERM" in output and "checkpoint saved" in output
    stopped = load(workdir).step
    assert 5 <= stopped < STEPS and records(workdir)[-1]["step"] == stopped
    done = run(data_dir, workdir, cache, f"--config.num_steps={STEPS + 2}")
    assert f"config.num_steps changes from {STEPS} to {STEPS + 2}" in done
    assert f"going on from update {stopped}" in done
    fields = lambda r: {k: v for k, v in r.items() if not k.startswith("eval_")}
    # held-out batches at the last step of the reference alone; the updates are the same
    found, expected = records(workdir)[:STEPS], records(reference)
    assert [fields(r) for r in found] == [fields(r) for r in expected]
    assert records(workdir)[-1]["step"] == STEPS + 2


def test_another_configuration_is_refused_by_name(data_dir, reference, run_main):
    before = records(reference)
    flags = ["--config.model.width=64", "--config.seed=3", "--config.data.min_seconds=0.5"]
    flags = flags_of(data_dir, reference, *flags, "--config.log_steps=7")
    said = run_main(TINY, *flags)
    for name in ("config.model.width", "config.seed", "config.data.min_seconds"):
        assert f"{name}: the checkpoint has" in said
    assert "log_steps" not in said
    assert records(reference) == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.model.widht=64"], ["widht", "width"]),
        (["--config.model.width=30"], ["config.model.width: found 30", "4 heads"]),
        (["--workdir=/dev/null/run"], ["/dev/null/run", "cannot be written"]),
        (["--config.data.data_dir=/nowhere"], ["/nowhere", "prepare"]),
        (["--config.data.eval_split=dev"], ["dev", "validation"]),
        (["--config.mesh.data=9"], ["config.mesh: found data 9", "1 to 8"]),
    ],
)
def test_mistakes_are_explained(data_dir, tmp_path, run_main, flags, words):
    said = run_main(TINY, *flags_of(data_dir, tmp_path / "never", *flags))
    assert said.startswith("error: ") and all(word in said for word in words), said
    assert not (tmp_path / "never" / "metrics.jsonl").exists()


def test_a_mistake_is_one_line(data_dir, cache, tmp_path):
    output = run(data_dir, tmp_path / "never", cache, "--config.model.width=30", expect=1)
    assert "config.model.width: found 30" in output and "Traceback" not in output


def in_process(data_dir: Path, **changes):
    """Configuration and data of a short run in this process, on eight devices."""
    fields = {"data.data_dir": str(data_dir), "data.max_rungs": 1, "data.max_seconds": 1.0}
    fields |= {"num_steps": 4, "checkpoint_steps": 2, "eval_steps": 100}
    config = config_of(**(fields | changes))
    return config, open_split(config.data, split="train", seed=config.seed)


@pytest.mark.usefixtures("compile_quickly")
def test_a_loss_that_is_not_finite_stops_the_run(data_dir, tmp_path):
    changes = {"optimizer.learning_rate": 1e30, "optimizer.init_scale": 0.0}
    config, data = in_process(data_dir, num_steps=50, checkpoint_steps=1, **changes)
    with pytest.raises(TrainingError) as raised:
        train(config, workdir=tmp_path, train_data=data, eval_data=None)
    message = str(raised.value)
    assert "is not finite: loss" in message and "is safe" in message
    assert any(name in message for name in data.manifest.ids)
    trained = load(tmp_path)  # the last good state is there
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained.params))


@pytest.mark.slow
def test_a_state_that_is_not_finite_is_not_evaluated(data_dir, tmp_path, monkeypatch):
    changes = {"optimizer.learning_rate": 1e30, "optimizer.init_scale": 0.0, "eval_steps": 1}
    config, data = in_process(data_dir, num_steps=50, checkpoint_steps=50, **changes)
    held_out = open_split(config.data, split="validation", seed=0)
    evaluated = []
    measure = Evaluation.measure

    def watched(self, state):
        evaluated.append(int(state.step))
        return measure(self, state)

    monkeypatch.setattr(Evaluation, "measure", watched)
    with pytest.raises(TrainingError, match="is not finite") as raised:
        train(config, workdir=tmp_path, train_data=data, eval_data=held_out)
    failed = int(re.search(r"update (\d+) is not finite", str(raised.value))[1])
    assert evaluated == list(range(1, failed))
    assert [r["step"] for r in records(tmp_path) if "eval_loss" in r] == evaluated


@pytest.mark.slow
@pytest.mark.usefixtures("compile_quickly", "compile_once")
def test_codewords_of_the_first_batch_are_set_once(data_dir, tmp_path, capsys):
    changes = {"codebook.init": "frames", "checkpoint_steps": 1, "codebook.decay": 0.999}
    for name, stops in {"whole": (2,), "halves": (1, 2)}.items():
        for num_steps in stops:
            config, data = in_process(data_dir, num_steps=num_steps, **changes)
            train(config, workdir=tmp_path / name, train_data=data, eval_data=None)
    assert capsys.readouterr().err.count("compiling the first codewords") == 2  # once a run
    whole, halves = load(tmp_path / "whole"), load(tmp_path / "halves")
    assert jax.tree.all(jax.tree.map(np.array_equal, whole.codebook, halves.codebook))
    assert jax.tree.all(jax.tree.map(np.array_equal, whole.params, halves.params))


def test_two_runs_in_one_workdir_are_refused(data_dir, tmp_path):
    config, data = in_process(data_dir)
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TrainingError, match="in use by another run"):
            train(config, workdir=tmp_path, train_data=data, eval_data=None)


@pytest.mark.slow
def test_a_file_system_without_locks_is_no_other_run(data_dir, tmp_path, monkeypatch, caplog):
    config, data = in_process(data_dir, num_steps=1)
    monkeypatch.setattr(fcntl, "flock", no_locks)
    train(config, workdir=tmp_path, train_data=data, eval_data=None)
    assert f"{tmp_path}: its file system has no locks (No locks available)" in caplog.text
    assert load(tmp_path).step == 1


def no_locks(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.mark.slow
@pytest.mark.usefixtures("compile_quickly", "compile_once")
def test_damaged_and_half_written_checkpoints(data_dir, tmp_path, caplog):
    config, data = in_process(data_dir)
    train(config, workdir=tmp_path, train_data=data, eval_data=None)
    checkpoints = tmp_path / "checkpoints"
    whole = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["loss"]
    # the newest lost a part of its files; one more was being written
    shutil.copytree(checkpoints / "4", checkpoints / "6.orbax-checkpoint-tmp")
    for path in (checkpoints / "4" / "state").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    train(config, workdir=tmp_path, train_data=data, eval_data=None)
    assert "DAMAGED checkpoint 4" in caplog.text
    assert (checkpoints / "damaged-4").is_dir() and load(tmp_path).step == 4
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 4 and last["loss"] == whole
    for step in ("2", "4"):
        for path in (checkpoints / step / "state").rglob("*"):
            if path.is_file():
                path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        train(config, workdir=tmp_path, train_data=data, eval_data=None)
    assert all((checkpoints / step).is_dir() for step in ("2", "4", "damaged-4"))  # untouched
