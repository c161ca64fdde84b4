"""benchmarks/gpu.sh: what fails, hangs or dies costs only itself; all of it is rehearsed on CPU."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu, gpu_tables

ROOT = Path(__file__).parents[2]


def job(name, code, *, seconds=60.0):
    return gpu.Job("update", {"attention": name, "remat": "dots"}, ["-c", code], seconds)


def speak(**row):
    return f"print({json.dumps(json.dumps(row))}, flush=True)\n"


MEASURED = {"utterances": 12, "audio_seconds": 237.0, "median": 0.1, "least": 0.09}
MEASURED |= {"audio_per_s": 2600.0, "tflops": 140.0, "peak_share": 0.14, "peak_gib": 20.0}
MEASURED |= {"needed_gib": 19.0, "compile_seconds": 30.0, "compiled_before": False}


def run(output, jobs, *, minutes=1.0):
    kit = gpu.Kit(output, about={"device": "a GPU"})
    failed = gpu.run(kit, iter(jobs), minutes=minutes, environment=dict(os.environ))
    return failed, json.loads((output / "update.json").read_text())["rows"]


def test_a_job_that_fails_says_so_and_the_next_one_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "LEAST_SECONDS", 0)
    sleeps = "import time; time.sleep(600)"
    jobs = [
        job("raises", "import sys; print('x', file=sys.stderr); raise KeyError('no such layer')"),
        job("hangs", sleeps, seconds=2),
        job("hangs later", speak(utterances=12) + sleeps, seconds=8),
        job("dies", speak(utterances=12) + "import os; os.kill(os.getpid(), 11)"),
        job("silent", "print('done'); print('{not json}')"),
        job("refused", speak(refused="attention: not here") + "raise SystemExit('error: refused')"),
        job("too big", speak(out_of_memory="80 GiB") + "raise SystemExit('error: memory')"),
        job("bigger", "raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory')"),
        job("works", speak(jax=MEASURED)),
    ]
    start = time.monotonic()
    failed, rows = run(tmp_path / "found", jobs)
    assert time.monotonic() - start < 50
    assert failed == 7
    found = {}
    for row in rows:
        found.setdefault(row["attention"], []).append(row)
    assert found["raises"][0]["failed"] == "exit code 1"
    assert found["raises"][0]["last_lines"][-1] == "KeyError: 'no such layer'"
    assert found["hangs"][0]["failed"] == "killed at its limit of 2 s"
    said, why = found["hangs later"]
    assert said["utterances"] == 12 and why["failed"] == "killed at its limit of 8 s"
    said, why = found["dies"]
    assert said["utterances"] == 12 and why["failed"] == "ended by SIGSEGV"
    assert found["silent"][0]["failed"] == "it printed no result"
    assert [list(row)[-1] for row in found["refused"]] == ["refused"]
    assert [list(row)[-1] for row in found["too big"]] == ["out_of_memory"]
    assert found["bigger"][0]["failed"] == "out of memory (exit code 1)"
    assert found["works"] == [{"attention": "works", "remat": "dots"} | MEASURED]
    errors = (tmp_path / "found" / "errors.txt").read_text()
    assert "KeyError" in errors and "works dots: succeeded" in errors


def test_tables_of_what_failed_and_what_did_not(tmp_path):
    jobs = [
        job("a", "raise KeyError('no | such\\nlayer')"),
        job("b", speak(refused="attention 'b': not here")),
        job("xla", speak(jax=MEASURED)),
    ]
    failed, _ = run(tmp_path, jobs)
    text = (tmp_path / "results.md").read_text()
    assert failed == 1
    assert "| a | dots |  | exit code 1: KeyError: 'no / such\\nlayer' |" in text
    assert "| b | dots |  | not on this device: attention 'b': not here |" in text
    measured = "| xla | dots | 12 | 0.1000 s (0.0900) | 2,600 | 140.0 | 14.0% | 20.0 GiB | 19.0 GiB"
    assert f"{measured} | 30.0 s |" in text
    assert "2,500: met; 3,600: not met; 7,900: not met" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {11}


def test_a_row_that_cannot_be_shown_costs_no_other(tmp_path):
    failed, rows = run(tmp_path, [job("odd", speak(loss=1.0)), job("b", speak(loss=2.0))])
    assert failed == 0 and [row["loss"] for row in rows] == [1.0, 2.0]
    assert "- cannot be shown: KeyError('compile_seconds')" in (tmp_path / "results.md").read_text()


def test_rows_are_written_before_a_job_ends(tmp_path):
    """Whatever ends the kit itself, what was measured is there; and nothing runs on."""
    waits = "import os; open(os.environ['PID'], 'w').write(str(os.getpid()))\n"
    waits += "import time; time.sleep(600)"
    script = (
        "import os, signal, sys; from pathlib import Path; from benchmarks import gpu\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"code = {speak(utterances=12) + waits!r}\n"
        "jobs = [gpu.Job('update', {'attention': 'xla', 'remat': 'dots'}, ['-c', code], 60)]\n"
        "kit = gpu.Kit(Path(sys.argv[1]), about={})\n"
        "gpu.run(kit, iter(jobs), minutes=1, environment=dict(os.environ))\n"
    )
    pid, written = tmp_path / "pid", tmp_path / "found" / "update.json"
    environment = os.environ | {"PID": str(pid)}
    command = [sys.executable, "-c", script, str(written.parent)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment)
    deadline = time.monotonic() + 60
    while not (written.exists() and pid.exists() and pid.read_text()):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    assert json.loads(written.read_text())["rows"][0]["utterances"] == 12
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_jobs_after_the_minutes_are_not_started(tmp_path):
    failed, rows = run(tmp_path, [job("late", speak(jax=MEASURED))] * 2, minutes=0.1)
    assert failed == 2
    assert [row["failed"] for row in rows] == ["not started: the minutes were over"] * 2


def plan(tmp_path, answers):
    """Jobs of a plan on a device of 80 GiB; `answers` gives the row of each."""
    kit, asked = gpu.Kit(tmp_path, about={}), []
    for found in itertools.islice(gpu.plan(kit, gpu.REAL, attentions=["xla", "fused"]), 50):
        asked.append(found)
        kit.add(found.part, found.about | answers(found))
    return asked


def answer(job):
    """The fused attention is the fastest, PyTorch does not compile, 40 utterances fit."""
    if job.part != "update":
        return {"failed": "exit code 1"}
    size = job.about.get("tried_utterances", 12)
    if size > 40:
        return {"out_of_memory": "too many"}
    row = {"audio_per_s": 3000.0 + 1000 * (job.about["attention"] == "fused"), "device_gib": 80.0}
    row |= {"utterances": size, "needed_gib": 2.0 + 1.5 * size, "state_gib": 2.0}
    return MEASURED | row


def test_the_plan_begins_with_the_most_valuable_and_follows_the_fastest(tmp_path):
    asked = plan(tmp_path, answer)
    parts = [found.part for found in asked]
    first = ["parity", *["update"] * 3, "peer", "peer", "features", "kernels", "parity"]
    assert parts[:9] == first
    assert [found.about["of"] for found in asked if found.part == "parity"] == [
        "golden",
        "bfloat16",
    ]
    assert [found.about["peer"] for found in asked[4:6]] == ["compiled", "eager"]
    for found in (*asked[4:6], asked[7]):
        assert {"--attention=fused", "--remat=none", "--shape=device"} <= set(found.command)
    variants = [(found.about["attention"], found.about["remat"]) for found in asked[:11]
                if found.part == "update"]  # fmt: skip
    assert variants[:3] == [("xla", "dots"), ("xla", "none"), ("fused", "none")]
    grid = itertools.product(("xla", "fused"), ("none", "dots", "full"))
    found = [found.about for found in asked if found.part == "update"]
    assert {(row["attention"], row["remat"]) for row in found} == set(grid)
    # 80 GiB hold 52 by the compiler's estimate; 40 fit
    assert [row["tried_utterances"] for row in found[6:]] == [52, 32, 42, 37]


def test_no_larger_batch_is_tried_once_the_time_is_over(tmp_path):
    late = {"failed": "not started: the minutes were over"}
    asked = plan(tmp_path, lambda job: late if "tried_utterances" in job.about else answer(job))
    assert ["tried_utterances" in found.about for found in asked].count(True) == 1


def test_a_compiled_peer_needs_no_eager_one(tmp_path):
    asked = plan(tmp_path, lambda job: answer(job) if job.part == "update" else {"torch": {}})
    assert [found.about for found in asked if found.part == "peer"] == [{"peer": "compiled"}]


def test_without_a_gpu_it_says_so(tmp_path):
    command = ["bash", "benchmarks/gpu.sh", f"--output={tmp_path}"]
    environment = os.environ | {"PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 2, run.stderr
    assert "error: jax sees no GPU, only cpu" in run.stderr


@pytest.mark.parametrize("flag", ["--minutes=0", "--wheels=tests"])
def test_flags_that_cannot_be(flag):
    command = [sys.executable, "benchmarks/gpu.py", flag]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2 and flag.partition("=")[0] in run.stderr


# transformers imports what it finds, so nothing of these may be found
BLOCK = """
from importlib.machinery import PathFinder
away = {"tensorflow", "tensorflow_datasets", "ml_collections", "soundfile", "librosa"}
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name in away else find(name, *rest)
"""


@pytest.mark.very_slow
def test_rehearsal_measures_everything(tmp_path):
    """In processes that have none of what the machine with the GPU lacks."""
    pytest.importorskip("transformers")
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(BLOCK)
    paths = os.pathsep.join([str(blocked), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths, "PYTHON": sys.executable, "XLA_FLAGS": ""}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "compiled")
    output = tmp_path / "found"
    command = ["bash", "benchmarks/gpu.sh", "--rehearse", "--minutes=30", f"--output={output}"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + (output / "errors.txt").read_text()
    rows = {part: json.loads((output / f"{part}.json").read_text())["rows"] for part in gpu.PARTS}
    assert [row["compared"] for row in rows["parity"]][-1] == "3 updates in bfloat16"
    assert all(row.get("wrong", []) == [] for row in rows["parity"])
    update = [row for row in rows["update"] if gpu.succeeded(row)]
    assert {(row["attention"], row["remat"]) for row in update} >= {
        ("xla", "none"),
        ("xla", "dots"),
    }
    tried = [row for row in rows["update"] if "tried_utterances" in row]
    assert {gpu.succeeded(row) for row in tried} == {True, False}
    assert rows["peer"][0]["jax"]["ratio"] > 0 and rows["peer"][0]["torch"]["way"] == "compiled"
    assert [row["side"] for row in rows["features"]] == [
        "jax bfloat16", "torch bfloat16", "jax float32", "torch float32",
    ]  # fmt: skip
    kernels = rows["kernels"][0]["kernels"]
    assert len(kernels) == 10 and any("encoder" in kernel["place"] for kernel in kernels)
    assert len(list(output.iterdir())) <= 8 and set(gpu_tables._TABLES) == set(gpu.PARTS)
