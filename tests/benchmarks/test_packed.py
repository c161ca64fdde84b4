"""benchmarks/packed.py: the batches of the dataset, from one file and without tensorflow."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks import packed
from configs import tiny
from dinosr_jax.config import parse
from dinosr_jax.data.batches.pipeline import open_split
from dinosr_jax.data.prepare.audio_folder import prepare

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    source, folder = (tmp_path_factory.mktemp(name) for name in ("source", "prepared"))
    speech = soundfile.read(ROOT / "data/embedded/asterisk_en.ogg", frames=100 * 16_000)[0]
    for number, seconds in enumerate(np.linspace(0.7, 4.5, 24)):
        start = number * 40_000
        part = speech[start : start + int(seconds * 16_000)]
        name = f"{'validation' if number % 3 else 'train'}/{number:02d}.flac"
        path = source / name
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, part, 16_000)
    prepare(source, data_dir=folder)
    return folder


def config(data_dir, **fields):
    config = tiny.get_config()
    config.data.update(data_dir=str(data_dir), min_seconds=1.0, batch_multiple=2)
    config.data.update(max_batch_seconds=8.0, train_split="train", eval_split="train[:50%]")
    config.update(fields)
    return parse(config)


@pytest.fixture(scope="module")
def packing(data_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "speech.npz"
    said = packed.pack(config(data_dir), output=path, most_mb=60)
    return path, said


def batches(data, count):
    found = iter(data.batches(3, count))
    return [next(found) for _ in range(count)]


@pytest.mark.parametrize(
    ("use", "split", "seed"), [("train", "train", 0), ("eval", "train[:50%]", 0)]
)
def test_batches_are_those_of_the_dataset(data_dir, packing, use, split, seed):
    path, said = packing
    assert "16 bits a sample" in said and path.stat().st_size < 10e6
    c = config(data_dir)
    how = {"use": "held out"} if use == "eval" else {}
    expected = open_split(c.data, split=split, seed=seed, **how)
    found = packed.open_packed(path, c, use=use)
    assert found.fingerprint == expected.fingerprint
    assert found.plan.summary() == expected.plan.summary()
    assert found.speakers == expected.speakers
    for a, b in zip(batches(found, 5), batches(expected, 5), strict=True):
        assert (a.step, a.ids, a.num_bad) == (b.step, b.ids, b.num_bad)
        np.testing.assert_array_equal(a.waveforms, b.waveforms)


def test_eight_bits_where_sixteen_do_not_fit(data_dir, packing, tmp_path):
    path, bits = tmp_path / "small.npz", 0.75 * packing[0].stat().st_size / 1e6
    assert "8 bits a sample" in packed.pack(config(data_dir), output=path, most_mb=bits)
    assert path.stat().st_size < 1e6 * bits
    exact, rough = (
        batches(packed.open_packed(p, config(data_dir), use="train"), 3) for p in (packing[0], path)
    )
    for a, b in zip(exact, rough, strict=True):
        assert a.ids == b.ids
        noise = np.mean((a.waveforms - b.waveforms) ** 2) / np.mean(a.waveforms**2)
        assert 1e-6 < noise < 10**-3.3  # 33 dB


def test_too_much_speech_is_refused(data_dir, tmp_path):
    with pytest.raises(ValueError, match=r"hours, .* MB with 8 bits .* expected 0\.1 MB"):
        packed.pack(config(data_dir), output=tmp_path / "x.npz", most_mb=0.1)
    assert not list(tmp_path.iterdir())


def test_mulaw():
    samples = np.arange(-32768, 32768).astype(np.int16)
    codes = packed.to_mulaw(samples)
    assert codes.dtype == np.uint8 and set(codes) == set(range(1, 256))
    found = packed.from_mulaw(codes).astype(int)
    assert (np.abs(found - samples) <= 16 + np.abs(samples.astype(int)) / 40).all()
    assert found[32768] == samples[32768] == 0
    np.testing.assert_array_equal(packed.to_mulaw(packed.from_mulaw(codes)), codes)


def test_reading_needs_no_tensorflow(packing, data_dir):
    script = (
        "import sys; from pathlib import Path\n"
        "for name in ('tensorflow', 'tensorflow_datasets', 'array_record', 'soundfile'):\n"
        "    sys.modules[name] = None\n"
        "from benchmarks import packed; from configs import tiny\n"
        "from dinosr_jax.config import parse\n"
        "config = tiny.get_config()\n"
        "config.data.update(batch_multiple=2, max_batch_seconds=8.0)\n"
        "data = packed.open_packed(Path(sys.argv[1]), parse(config), use='train')\n"
        "print(next(iter(data.batches(0, 1))).waveforms.shape)\n"
    )
    command = [sys.executable, "-c", script, str(packing[0])]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.startswith("(2, "), run.stderr


@pytest.mark.slow
def test_a_run_of_it_goes_on_without_tensorflow(packing, tmp_path):
    blocked = tmp_path / "blocked"
    for name in ("tensorflow", "tensorflow_datasets", "array_record", "soundfile", "librosa"):
        (blocked / name).mkdir(parents=True)
        (blocked / name / "__init__.py").write_text(f"raise ImportError({name!r})\n")
    environment = os.environ | {"PYTHONPATH": str(blocked), "XLA_FLAGS": ""}
    workdir = tmp_path / "run"
    command = [sys.executable, "benchmarks/packed.py", "train", str(packing[0])]
    command += ["--config=configs/tiny.py", f"--workdir={workdir}", "--set=data.batch_multiple=2"]
    command += ["--set=data.max_batch_seconds=8.0", "--set=eval_steps=2"]
    for steps in (2, 3):
        more = [f"--set=num_steps={steps}"]
        run = subprocess.run(
            command + more, cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3]
    assert records[-1]["eval_loss"] > 0
