"""Decoders side by side: order, errors, processes that are killed or left alone."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dinosr_jax.data.vocabulary import letters
from dinosr_jax.inference.recognition.decode_pool import decode_all
from dinosr_jax.inference.recognition.decoding import Clock, greedy

ROOT = Path(__file__).parents[3]
GREEDY = functools.partial(greedy, letters(), Clock(400, 320))


def inputs(number):
    rng = np.random.default_rng(0)
    return [(i, rng.normal(size=(3 + i, 32)).astype(np.float32)) for i in range(number)]


def killed():
    """A decoder whose process dies of every utterance."""
    return lambda emissions: os.kill(os.getpid(), signal.SIGKILL)


def unusable():
    raise ValueError("no such n-gram")


@pytest.mark.parametrize("by", ["threads", "processes"])
def test_they_give_what_one_gives_in_order(by):
    found = list(decode_all(iter(inputs(9)), GREEDY, by=by, num_workers=2))
    assert [item for item, _, _ in found] == list(range(9))
    for _, array, hypothesis in found:
        assert hypothesis == GREEDY()(array)


def test_what_was_computed_before_an_error_is_decoded():
    def source():
        yield from inputs(5)
        raise OSError("damaged")

    found = []
    with pytest.raises(OSError, match="damaged"):
        for item, _, _ in decode_all(source(), GREEDY, num_workers=2):
            found.append(item)
    assert found == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("by", ["threads", "processes"])
def test_an_unusable_decoder_is_told_before_anything_is_computed(by):
    def source():
        raise AssertionError("computed")
        yield

    with pytest.raises(ValueError, match="no such n-gram"):
        list(decode_all(source(), unusable, by=by, num_workers=1))


def test_a_killed_process_is_an_error():
    with pytest.raises(ChildProcessError, match="was killed.*--num_workers"):
        list(decode_all(iter(inputs(3)), killed, by="processes", num_workers=1))


def test_processes_end_with_the_one_that_started_them(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, time, functools, numpy as np\n"
        "from dinosr_jax.inference.recognition.decode_pool import spawned\n"
        "if __name__ == '__main__':\n"
        "    with spawned(1, os.getpid) as pool:\n"
        "        print(pool.submit(os.getpid).result(), flush=True)\n"
        "        time.sleep(60)\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "text": True}
    parent = subprocess.Popen([sys.executable, script], env=env, **pipes)
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    limit = time.monotonic() + 60
    while alive(child) and time.monotonic() < limit:
        time.sleep(0.01)
    assert not alive(child)


def alive(process):
    """Whether it runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
