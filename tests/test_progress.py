"""Progress: a bar on a terminal; in a file few lines, each whole."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dinosr_jax import progress

ROOT = Path(__file__).parents[1]


@pytest.fixture
def clock(monkeypatch):
    """Time that stands still but for what a test adds to it."""
    now = [1000.0]
    for module in (progress.std, progress):
        monkeypatch.setattr(module, "time", _Clock(now))
    return now


class _Clock:
    def __init__(self, now):
        self._now = now

    def time(self):
        return self._now[0]

    __call__ = monotonic = time


def written(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


def test_a_file_gets_a_line_every_half_minute_and_at_the_end(monkeypatch, clock):
    stream = written(monkeypatch)
    with progress.progress_bar(total=1000, unit="file", desc="check") as bar:
        for _ in range(1000):
            clock[0] += 0.125  # 125 s in all
            bar.update()
            bar.set_postfix(loss="1.0")
    lines = stream.getvalue().split("\n")
    assert lines.pop() == "" and "\r" not in stream.getvalue() and len(lines) == 5
    counts = [int(re.search(r"(\d+)/1000", line)[1]) for line in lines]
    assert counts == [240, 480, 720, 960, 1000]
    assert (
        lines[1].startswith("check:  48%") and "[01:00<01:05" in lines[1] and "file/s" in lines[1]
    )
    assert "loss=1.0" in lines[1]


def test_audio_is_counted_a_second_as_on_a_terminal(monkeypatch, clock):
    stream = written(monkeypatch)
    form = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"
    with progress.progress_bar(unit="s of audio", unit_scale=True, bar_format=form) as bar:
        bar.total = 3.0
        clock[0] += 20
        bar.update(3.0)
    assert stream.getvalue() == "100%| 3.00/3.00 [00:20<00:00, 0.15s of audio/s]\n"


def test_stages_of_one_bar_end_with_a_line_each(monkeypatch, clock):
    stream = written(monkeypatch)
    with progress.progress_bar(desc="reading", bar_format="{bar}") as bar:
        for name in ("first", "second"):
            bar.reset(10)
            bar.set_description(name)
            for _ in range(10):
                clock[0] += 1
                bar.update()
        bar.write("a notice", file=sys.stderr)
    lines = stream.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == ["first", "a notice", "second"]
    assert all("10/10" in line for line in (lines[0], lines[2]))


def test_what_is_short_or_switched_off_says_nothing(monkeypatch, clock):
    stream = written(monkeypatch)
    for options in ({"delay": 2}, {"disable": True}):
        for _ in progress.progress_bar(range(5), **options):
            clock[0] += 0.1
    assert stream.getvalue() == ""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    noise = np.random.default_rng(0).standard_normal(8_000) / 10
    for number in range(60):
        soundfile.write(folder / f"{number}.wav", noise, 16_000)
    return folder


def command(source, data_dir):
    where = [f"--source={source}", f"--data_dir={data_dir}", "--num_workers=1"]
    return [sys.executable, "-m", "dinosr_jax", "prepare", *where]


def test_a_command_whose_messages_go_to_a_file(source, tmp_path):
    with (tmp_path / "log").open("w") as log:
        subprocess.run(
            command(source, tmp_path / "out"),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=log,
            check=True,
            timeout=300,
        )
    text = (tmp_path / "log").read_bytes().decode()
    assert "\r" not in text and "\x1b" not in text
    shown = [line for line in text.splitlines() if "60/60" in line]
    assert len(shown) == 2 and shown[0].startswith("check: 100%") and "file/s" in shown[0]


def test_a_command_on_a_terminal_shows_a_bar(source, tmp_path):
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        command(source, tmp_path / "out"), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=terminal
    )
    os.close(terminal)
    text = b""
    try:
        while found := os.read(main, 4096):
            text += found
    except OSError:  # the other end is closed
        pass
    assert process.wait(300) == 0
    assert b"\rcheck:" in text and "█".encode() in text
