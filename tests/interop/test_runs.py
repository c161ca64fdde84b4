"""Imported checkpoints are runs: read, exported and trained on."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from dinosr_jax.cli import cli
from dinosr_jax.config import parse
from dinosr_jax.data.prepare.audio_folder import prepare
from dinosr_jax.inference.pretrained import load
from dinosr_jax.interop import exports, runs
from dinosr_jax.interop.formats import InteropError, read_checkpoint
from dinosr_jax.objective.teacher import ema_decay
from dinosr_jax.training.optimizer import make_schedule
from tests.interop.test_exports import found, same  # noqa: F401
from tests.interop.test_fairseq import GOLDEN

ROOT = Path(__file__).parents[2]


def test_a_run_is_imported_and_read(found, tmp_path):  # noqa: F811
    runs.write_run(found, tmp_path / "run")
    back = runs.read_any(tmp_path / "run")
    values = found.config.to_dict() | {"workdir": str(tmp_path / "run")}
    same(found._replace(config=parse(values)), back)
    same(back, runs.read_any(tmp_path / "run/checkpoints/7"))
    assert json.loads((tmp_path / "run/config.json").read_text())["model"]["width"] == 48
    records = [
        {"step": 5, "loss": 3.5},
        {"step": 6, "loss": 2.5, "eval_loss": 4.5, "eval_target_perplexity": 11.0},
        {"step": 7, "loss": 1.5},
        {"step": 8, "loss": 0.5, "eval_loss": 0.25},  # after the checkpoint
    ]
    text = "\n".join([*map(json.dumps, records), '{"step": 9'])
    (tmp_path / "run/metrics.jsonl").write_text(text)
    exports.export(runs.read_any(tmp_path / "run"), tmp_path / "out", kind="fairseq")
    card = (tmp_path / "out/README.md").read_text()
    held_out = "### Held out\n\n- step: 6\n- eval_loss: 4.5\n- eval_target_perplexity: 11.0\n"
    assert f"{held_out}\n### Training\n\n- step: 7\n- loss: 1.5\n" in card


def test_a_write_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="full"), runs.written_whole(tmp_path / "run") as folder:
        (folder / "config.json").write_text("{}")
        raise OSError("full")
    assert list(tmp_path.iterdir()) == []
    with runs.written_whole(tmp_path / "run"), runs.written_whole(tmp_path / "run") as folder:
        (folder / "a").touch()  # the other is at work, and is left alone
        assert len(list(tmp_path.iterdir())) == 2
        folder.joinpath("a").unlink()
    (tmp_path / "run").rmdir()
    code = """
import os, signal, sys
from pathlib import Path
from dinosr_jax.interop.runs import written_whole
with written_whole(Path(sys.argv[1])) as folder:
    (folder / "big").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code, tmp_path / "run"], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert [len(list(path.iterdir())) for path in tmp_path.iterdir()] == [1]
    with runs.written_whole(tmp_path / "run"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    (tmp_path / "run/mine").touch()
    with pytest.raises(InteropError, match="not empty"), runs.written_whole(tmp_path / "run"):
        raise AssertionError("not reached")


def test_without_locks_what_others_may_be_writing_stays(tmp_path, monkeypatch, caplog):
    def no_locks(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / ".run.partial-other").mkdir()  # of a process that is alive, maybe
    with runs.written_whole(tmp_path / "run") as folder:
        (folder / "file").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run.partial-other", "run"]
    assert "its file system has no locks" in caplog.text


@pytest.mark.slow
def test_training_goes_on_from_the_step_of_an_imported_checkpoint(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    waveform = soundfile.read(ROOT / "data/embedded/asterisk_it.ogg", frames=32 * 16_000)[0]
    for number in range(16):
        soundfile.write(source / f"{number}.flac", waveform[number * 32_000 :][:32_000], 16_000)
    prepare(source, data_dir=tmp_path / "data")
    run = tmp_path / "run"
    golden = read_checkpoint(GOLDEN / "tiny_fairseq.pt")._replace(data={"fresh": True})
    exports.export(golden, tmp_path / "out", kind="fairseq")  # says that it was never trained
    checkpoint = str(tmp_path / "out/dinosr.pt")
    flags = {"data_dir": tmp_path / "data", "dataset": "audio_folder", "train_split": "train"}
    flags |= {"eval_split": "", "max_seconds": 2.0, "max_batch_seconds": 16.0}
    flags |= {"batch_multiple": 8, "num_workers": 2}
    arguments = ["import", checkpoint, f"--output={run}", "--step=5"]
    imported = CliRunner().invoke(cli, arguments)
    assert imported.exit_code == 0, imported.output
    assert load(run).fresh
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    command = ["main.py", f"--config={run}/config.py", f"--workdir={run}", "--config.num_steps=7"]
    command += ["--config.log_steps=1", *(f"--config.data.{k}={v}" for k, v in flags.items())]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    said = imported.output + done.stdout + done.stderr
    assert "fairseq, 182 tensors used" in said and not load(run).fresh
    assert said.count("the checkpoint was imported: it takes these data and this recipe") == 1
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [6, 7]
    back = runs.read_any(run)
    assert back.step == 7
    rate, teacher = make_schedule(back.config), back.config.teacher
    decay = {"start": teacher.decay, "end": teacher.end_decay, "steps": teacher.decay_steps}
    for record in records:
        done = record["step"] - 1  # updates before it
        # a difference of float32 numbers as large as the highest rate
        rounding = 1e-7 * back.config.optimizer.learning_rate
        np.testing.assert_allclose(record["learning_rate"], rate(done), rtol=0, atol=rounding)
        expected = ema_decay(np.float32(done + 1), freeze_step=teacher.freeze_step, **decay)
        np.testing.assert_allclose(record["ema_decay"], expected, rtol=1e-7)
