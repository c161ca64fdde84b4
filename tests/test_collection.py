"""The tests themselves: one list in every process, and moments that can be repeated."""

import functools
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def collected(folder, *, hash_seed):
    """What a process with its own order of sets and its own temporary folder collects."""
    folder.mkdir()
    options = ["--collect-only", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:xdist"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "tests"],
        cwd=ROOT,
        env=environment | {"PYTHONHASHSEED": hash_seed, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [line for line in done.stdout.splitlines() if "::" in line]


@pytest.mark.slow  # launch/test.sh compares the lists of its own processes, too
def test_another_process_collects_the_same_tests(tmp_path, request):
    """Later: what holds the time, as gzip does, holds another one."""
    own = [item.nodeid for item in request.session.items]
    other = collected(tmp_path / "1", hash_seed="1")
    assert len(other) == len(set(other)) > 1000
    by_file = functools.partial(sorted, key=lambda name: name.partition("::")[0])
    assert by_file(own) == by_file(name for name in other if name in set(own))


def test_moments_are_repeated_by_their_seed(monkeypatch, request, capsys):
    monkeypatch.setenv("DINOSR_TEST_SEED", "7")
    drawn = request.getfixturevalue("chance").random()
    assert drawn == random.Random(7).random()
    assert "DINOSR_TEST_SEED=7" in capsys.readouterr().out
