"""Real speech in folders, `prepare` as a user runs it, and what it has written."""

import csv
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterable
from pathlib import Path

import soundfile
from click.testing import CliRunner

from dinosr_jax.cli import cli
from dinosr_jax.data import audio
from dinosr_jax.data.manifest import Records, load_manifest

ROOT = Path(__file__).parents[1]


def speech(samples: int | None = None, *, voice: str = "asterisk_en", start: int = 0):
    """[S] int16 at 16 kHz of an embedded voice; to the end by default."""
    path = ROOT / f"data/embedded/{voice}.ogg"
    return soundfile.read(path, start=start, frames=samples or -1, dtype="int16")[0]


def write_parts(
    folder: Path, seconds: Iterable[float], *, step: int, voice: str = "asterisk_en"
) -> None:
    """Parts of a voice that begin `step` samples apart, as 00.flac, 01.flac, ..."""
    for number, length in enumerate(seconds):
        part = speech(int(length * audio.SAMPLE_RATE), voice=voice, start=number * step)
        soundfile.write(folder / f"{number:02d}.flac", part, audio.SAMPLE_RATE)


def data_config(data_dir: Path, **changed) -> types.SimpleNamespace:
    """The fields of `data` that the readers of batches take."""
    fields = dict(
        data_dir=str(data_dir), dataset="audio_folder", min_seconds=1.0, max_seconds=3.0,
        max_batch_seconds=16.0, max_rungs=12, batch_multiple=4, max_ladder_loss=1.0,
        num_workers=2, prefetch_batches=2,
    )  # fmt: skip
    return types.SimpleNamespace(**{**fields, **changed})


def read_batches(data, start: int, num_steps: int, **options) -> list:
    with data.batches(start, num_steps, **options) as batches:
        return list(batches)


def prepare_well(*options: str) -> str:
    """What the command prints."""
    result = CliRunner().invoke(cli, ["prepare", *options])
    assert result.exit_code == 0, result.output
    return result.stdout


def prepare_error(*options: str) -> str:
    """The error that the command ends with."""
    result = CliRunner().invoke(cli, ["prepare", *options])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    return result.output[result.output.index("Error: ") :].strip()


def skipped_in(folder: Path) -> dict[str, str]:
    """Reasons of a dataset's skipped.tsv, by file or utterance."""
    with open(folder / "skipped.tsv", newline="") as file:
        return dict(list(csv.reader(file, "excel-tab"))[1:])


def records_by_id(data_dir: Path, *, split: str = "train", dataset="audio_folder"):
    """Id -> stored bytes, whose length is that of the manifest."""
    where = {"dataset": dataset, "split": split}
    records, manifest = Records(data_dir, **where), load_manifest(data_dir, **where)
    stored = {}
    for position in range(len(records)):
        content, id_ = records[position]
        assert id_ == manifest.ids[position]
        assert len(audio.load(content, name=id_)) == manifest.num_samples[position]
        stored[id_] = content
    return stored


def run_until(condition: Callable[[], bool], script: str, *arguments) -> subprocess.Popen:
    """Starts a script; returns, while it goes on, once a condition holds."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return process
