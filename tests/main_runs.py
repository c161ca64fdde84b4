"""main.py as a user runs it, in a process of its own, and the records of the run."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def start_main(cache: Path, *flags: str) -> subprocess.Popen:
    """Starts main.py on one device; programs are compiled quickly, and kept in a folder."""
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    kept |= {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    command = [sys.executable, "main.py", f"--config={ROOT}/configs/tiny.py", *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=kept, **pipes)


def run_main_py(cache: Path, *flags: str, expect: int = 0) -> str:
    """What main.py prints until it ends."""
    process = start_main(cache, *flags)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == expect, output[-3000:]
    return output


def records(workdir: Path) -> list[dict]:
    """metrics.jsonl, without what differs from one process to the next."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    timed = ("audio_seconds_per_second", "num_bad_utterances")
    return [{name: value for name, value in r.items() if name not in timed} for r in lines]
