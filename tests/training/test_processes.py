"""Several processes as one run: same losses, one stop, killed and resumed on other devices."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from dinosr_jax.training import processes
from tests.prepared_speech import write_parts

ROOT = Path(__file__).parents[2]
STEPS = 40


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    write_parts(folder, [2.0] * 32, step=32_000, voice="asterisk_es")
    rows = [
        f"{n:02d}\t{k / 5}\t{(k + 1) / 5}\t{'AEIOU'[n * k % 5]}"
        for n in range(32)
        for k in range(9)
    ]
    (folder / "phones.tsv").write_text("\n".join(["file\tstart_s\tend_s\tphone", *rows]) + "\n")
    return folder


HEARTBEAT_SECONDS = 20  # in place of a minute
MAIN = f"""
import main
from dinosr_jax.training import processes
processes.HEARTBEAT_SECONDS = {HEARTBEAT_SECONDS}
main.app.run(main.main, flags_parser=main.parse_flags)
"""


def start(data_dir, workdir, cache, *, count, devices, num_steps=STEPS) -> list[subprocess.Popen]:
    """Starts `count` processes of `devices` devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    fields = {"data.data_dir": data_dir, "num_steps": num_steps, "checkpoint_steps": 4}
    fields |= {"eval_steps": 8, "data.eval_split": "train[:50%]", "data.max_rungs": 1}
    fields |= {"data.max_seconds": 2.0, "model.layerdrop": 0.2}
    command = [sys.executable, "-c", MAIN, "--config=configs/tiny.py", f"--workdir={workdir}"]
    command += [f"--config.{name}={value}" for name, value in fields.items()]
    environment = os.environ | {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles faster
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    started = []
    for number in range(count):
        together = ["--distributed", f"--coordinator=localhost:{port}"]
        together += [f"--num_processes={count}", f"--process_id={number}"]
        flags = [*command, *(together if count > 1 else [])]
        with (workdir.parent / f"{workdir.name}-{number}.log").open("w") as log:
            where = {"cwd": ROOT, "env": environment, "stdout": log, "stderr": subprocess.STDOUT}
            started.append(subprocess.Popen(flags, **where))
    return started


def wait(started, workdir, *, seconds=500) -> list[int]:
    """Exit codes; kills what is still running after so many seconds."""
    end = time.monotonic() + seconds
    try:
        return [process.wait(end - time.monotonic()) for process in started]
    finally:
        for process in started:
            process.kill()


def said(workdir, number) -> str:
    return (workdir.parent / f"{workdir.name}-{number}.log").read_text()


def records(workdir) -> list[dict]:
    path = workdir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_step(started, workdir, step):
    while not (found := records(workdir)) or found[-1]["step"] < step:
        assert all(process.poll() is None for process in started), said(workdir, 0)[-3000:]
        time.sleep(0.05)


@pytest.fixture(scope="module")
def alone(data_dir, cache, tmp_path_factory) -> Path:
    """One process with one device, never stopped."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    started = start(data_dir, workdir, cache, count=1, devices=1)
    assert wait(started, workdir) == [0], said(workdir, 0)[-3000:]
    return workdir


@pytest.fixture(scope="module")
def stopped(data_dir, cache, tmp_path_factory) -> Path:
    """Two processes of two devices each, of which the second is asked to stop."""
    workdir = tmp_path_factory.mktemp("stopped") / "run"
    started = start(data_dir, workdir, cache, count=2, devices=2)
    wait_for_step(started, workdir, 9)
    started[1].send_signal(signal.SIGTERM)
    assert wait(started, workdir) == [0, 0], said(workdir, 0)[-3000:] + said(workdir, 1)[-3000:]
    return workdir


def assert_as_alone(found, expected, *, evaluated=None):
    """Record by record; after `evaluated` updates a part of the run ended, with an evaluation."""
    assert [record["step"] for record in found] == list(range(1, len(expected) + 1))
    for a, b in zip(found, expected, strict=True):
        if a["step"] == 8:  # two processes counted what one did
            for name in ("pnmi", "pnmi_1", "phone_purity", "loudness_information"):
                found_one, expected_one = a[f"eval_{name}"], b[f"eval_{name}"]
                np.testing.assert_allclose(found_one, expected_one, atol=1e-3, err_msg=name)
        if a["step"] != evaluated:
            assert a.keys() == b.keys()
        for name in ("loss", "eval_loss", "target_perplexity", "gradient_norm", "masked_share"):
            if name in b:
                np.testing.assert_allclose(a[name], b[name], rtol=1e-4, err_msg=str(a["step"]))
        assert a["num_bad_utterances"] == 0
    steps = (1, 2, 3, 7, 8, 9)  # before rounding has had time to grow
    losses = [[run[step - 1]["loss"] for step in steps] for run in (found, expected)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.slow
def test_two_processes_are_as_one_and_stop_together(alone, stopped):
    found = records(stopped)
    step = found[-1]["step"]
    assert 9 <= step < STEPS
    assert f"stopped by a signal at update {step} (from 0)" in said(stopped, 1)
    assert (stopped / "checkpoints" / str(step)).is_dir()
    assert_as_alone(found, records(alone)[:step])


@pytest.mark.slow
def test_killed_and_resumed_on_other_devices(data_dir, cache, alone, stopped, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(stopped, workdir)
    run = lambda **where: start(data_dir, workdir, cache, **where)
    # 1 one process of 8 devices
    end = records(stopped)[-1]["step"] + 2
    assert wait(run(count=1, devices=8, num_steps=end), workdir) == [0], said(workdir, 0)[-3000:]
    # 2 two of 2; the one that the other listens to is killed: that one ends at once, and says why
    started = run(count=2, devices=2)
    wait_for_step(started, workdir, end + 6)
    started[0].kill()
    codes = wait(started, workdir, seconds=HEARTBEAT_SECONDS + 60)
    assert codes[0] == -signal.SIGKILL and codes[1] != 0
    words = said(workdir, 1)
    assert "one of them has ended" in words or "another task died" in words, words[-3000:]
    # 3 the rest in one process
    assert wait(run(count=1, devices=1), workdir) == [0], said(workdir, 0)[-3000:]
    assert len(records(workdir)) == STEPS
    assert_as_alone(records(workdir), records(alone), evaluated=end)


def test_texts_of_all_processes_come_together(monkeypatch):
    assert processes.together(["a"]) == ["a"]
    rows = [["one", "zwei"], [], ["drei" * 9]]
    encoded = [np.frombuffer("\n".join(row).encode(), np.uint8) for row in rows]

    def gather(own):  # as jax does: arrays of one shape, on a new axis
        if own.ndim == 0:
            return np.array([len(row) for row in encoded])
        return np.stack([np.pad(row, (0, len(own) - len(row))) for row in encoded])

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", gather)
    assert processes.together(rows[0]) == ["one", "zwei", "drei" * 9]


def test_a_coordinator_that_is_missing_is_explained(monkeypatch):
    def refuse(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(processes.ProcessError, match=r"--coordinator=HOST:PORT .*--process_id"):
        processes.join(None, None, None)
