"""Preparing folders of real speech and hostile files, with real TFDS, kills included."""

import contextlib
import csv
import errno
import fcntl
import glob
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dinosr_jax.data import audio
from dinosr_jax.data.manifest import Records, load_manifest
from dinosr_jax.data.prepare import audio_folder, checking
from dinosr_jax.data.prepare.audio_folder import AudioFolder, prepare
from dinosr_jax.data.prepare.sources import SourceError
from tests import prepared_speech
from tests.odd_recordings import encoded, flac_claims, unfinished
from tests.prepared_speech import (
    prepare_error,
    prepare_well,
    records_by_id,
    run_until,
    skipped_in,
)

ROOT = Path(__file__).parents[3]


def speech(seconds: float, *, start: int = 3200) -> np.ndarray:
    return prepared_speech.speech(int(seconds * 16_000), start=start)


def make_corpus(folder: Path, count: int = 4) -> Path:
    for number in range(count):
        path = folder / f"{number % 2 + 1}/7/{number % 2 + 1}-7-{number:04d}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, speech(1 + number / 4, start=16_000 * number), 16_000)
    return folder


def make_hostile(folder: Path) -> None:
    def write(name, samples, rate=16_000, **options):
        soundfile.write(folder / name, samples, rate, **options)

    (folder / "empty.wav").touch()
    (folder / "letter.wav").write_text("Dear sir, this is not audio. " * 99)
    write("silent.wav", np.zeros(16_000, np.int16))
    write("nan.wav", np.full(16_000, np.nan, np.float32), subtype="FLOAT")
    write("short.wav", speech(0.01))
    write("whole.flac", speech(2))
    content = (folder / "whole.flac").read_bytes()
    (folder / "cut.flac").write_bytes(content[: len(content) // 2])
    (folder / "flipped.flac").write_bytes(content[:9000] + b"\0\0\0\0" + content[9004:])
    write("cut_whole.wav", speech(2))
    (folder / "cut.wav").write_bytes((folder / "cut_whole.wav").read_bytes()[:30_000])
    write("stereo.wav", np.stack([speech(1.5), speech(1.5) // 2], 1))
    write("cd.WAV", speech(1.5), 44_100)
    write("a.ogg", speech(1.5))
    write("b.opus", speech(1.5), format="OGG", subtype="OPUS")
    write("c.mp3", speech(1.5))
    write("a.wav", speech(1.25))  # same id as a.ogg


GOOD = ["1/7/1-7-0000", "1/7/1-7-0002", "2/7/2-7-0001", "2/7/2-7-0003", "a.ogg", "a.wav", "b", "c"]
GOOD += ["cd", "cut_whole", "stereo", "whole"]
BAD = {
    "empty.wav": "empty",
    "letter.wav": "not audio",
    "silent.wav": "silent",
    "nan.wav": "NaN",
    "short.wav": "too short: 160 samples",
    "cut.flac": "truncated",
    "cut.wav": "truncated",
    "flipped.flac": "corrupt",
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> tuple[Path, Path, str]:
    """Source, data_dir and what the command printed."""
    source = make_corpus(tmp_path_factory.mktemp("source"))
    make_hostile(source)
    data_dir = tmp_path_factory.mktemp("prepared")
    return source, data_dir, prepare_well(f"--source={source}", f"--data_dir={data_dir}")


def test_good_files_are_kept_and_bad_ones_listed_with_their_reason(hostile):
    _, data_dir, printed = hostile
    manifest = load_manifest(data_dir, split="train")
    assert sorted(manifest.ids) == sorted(GOOD)
    skipped = skipped_in(data_dir / "audio_folder/1.0.0")
    assert set(skipped) == set(BAD)
    for path, reason in BAD.items():
        assert reason in skipped[path]
        assert f"{path}: {skipped[path]}" in printed
    assert "8 left out" in printed and "12 utterances" in printed
    assert "2 utterances were cut, mixed down or resampled" in printed
    assert f"python main.py --config=configs/... --config.data.data_dir={data_dir}" in printed
    assert not list((data_dir / "preparation").glob("*/*"))


def test_original_bytes_are_stored_bit_for_bit(hostile):
    source, data_dir, _ = hostile
    by_id = records_by_id(data_dir)  # with the lengths of the manifest
    for path in source.rglob("*"):
        if path.is_file() and path.name not in {"stereo.wav", "cd.WAV", *BAD}:
            relative = path.relative_to(source).as_posix()
            id_ = relative if relative in by_id else os.path.splitext(relative)[0]
            assert by_id.pop(id_) == path.read_bytes()
    assert sorted(by_id) == ["cd", "stereo"]
    converted = audio.decode(by_id["cd"], name="cd")
    assert converted[1:3] == (16_000, 1) and by_id["cd"][:4] == b"fLaC"
    assert len(converted.waveform) == -(-24_000 * 16_000 // 44_100)
    mixed = audio.load(by_id["stereo"], name="stereo")
    stereo = soundfile.read(source / "stereo.wav", dtype="float32")[0].mean(1)
    np.testing.assert_allclose(mixed, stereo, atol=1 / 32768)


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> tuple[Path, Path, str]:
    """Source, data_dir and what the command printed, of headers that say no or a wrong length."""
    source, data_dir = tmp_path_factory.mktemp("odd"), tmp_path_factory.mktemp("prepared")
    x = speech(1.5)
    files = {f"{kind}{extension}": content for kind, (extension, content) in unfinished().items()}
    files |= {
        "good.flac": encoded(x, "FLAC"),
        "gsm.wav": encoded(x, "WAV", "GSM610", 8_000),
        "end.wav": encoded(x, "WAV")[:-16],
        "end.flac": flac_claims(encoded(x, "FLAC"), len(x) + 160),
        "cut.wav": encoded(x, "WAV")[:-9_000],
        "antiphase.wav": encoded(np.stack([x, -x], 1), "WAV"),
        "absurd.flac": flac_claims(encoded(x, "FLAC"), 2**36 - 1),
        "empty.wav": encoded(x[:0], "WAV"),
    }
    for name, content in files.items():
        (source / name).write_bytes(content)
    return source, data_dir, prepare_well(f"--source={source}", f"--data_dir={data_dir}")


def test_what_has_no_length_in_its_header_is_prepared_whole(odd):
    source, data_dir, printed = odd
    manifest, records = load_manifest(data_dir, split="train"), Records(data_dir, split="train")
    assert len(manifest) == len(unfinished()) + 4 and "4 left out" in printed
    skipped = skipped_in(data_dir / "audio_folder/1.0.0")
    reasons = {"cut.wav": "truncated", "antiphase.wav": "channels cancel"}
    reasons |= {"absurd.flac": "truncated", "empty.wav": "no samples"}
    assert skipped.keys() == reasons.keys()
    assert all(reason in skipped[name] for name, reason in reasons.items())
    for position, id_ in enumerate(manifest.ids):
        content, _ = records[position]
        samples, rate = audio.decode_samples(content, name=id_)
        assert rate == 16_000 and len(samples) == manifest.num_samples[position]
        (path,) = [p for p in source.iterdir() if id_ in (p.stem, p.name)]
        expected = np.clip(audio.load(path, name=id_), -1, 1 - 1 / 32768)
        assert soundfile.info(io.BytesIO(content)).frames == len(samples) == len(expected)
        np.testing.assert_allclose(samples / 32768, expected, atol=0.51 / 32768)
        assert content.startswith(b"fLaC")
        assert (content == path.read_bytes()) == (id_ == "good")


def test_ends_that_are_missing_are_counted_and_listed(odd):
    _, data_dir, printed = odd
    path = data_dir / "audio_folder/1.0.0/missing_ends.tsv"
    assert path.read_text().split() == "file missing_seconds end.flac 0.01 end.wav 0.0005".split()
    said = "2 recordings end before the length in their headers, by 10 ms at most, and are kept"
    assert f"{said} (all of them in {path})" in printed


def test_a_part_that_ends_where_the_header_says_is_kept(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.wav").write_bytes(encoded(speech(2), "WAV")[:-16])
    row = "a.wav\t{}\t{}\t16000\ts\ten\ttrain\t\n"
    columns = "shard\tfile\tstart_sample\tnum_samples\tspeaker\tlanguage\tsplit\ttext\n"
    (source / "index.tsv").write_text(columns + row.format("x", 0) + row.format("y", 16_000))
    prepare(source, data_dir=tmp_path / "data")
    manifest = load_manifest(tmp_path / "data", split="train")
    lengths = dict(zip(manifest.ids, manifest.num_samples, strict=True))
    assert lengths == {"a/x": 16_000, "a/y": 15_992}
    (source / "index.tsv").write_text(columns + row.format("y", 16_001))
    with pytest.raises(SourceError, match="line 2: ends at sample 32001 of a.wav"):
        prepare(source, data_dir=tmp_path / "other")


@pytest.mark.parametrize("error", [ValueError, MemoryError, SystemError])
@pytest.mark.parametrize("where", ["read", "resample", "write"])
def test_an_error_of_one_file_does_not_end_the_others(error, where, tmp_path, monkeypatch):
    import librosa

    source = make_corpus(tmp_path / "source")
    soundfile.write(source / "bad.wav", speech(1), 22_050)

    def fail_of(original, bad):
        def call(*args, **kwargs):
            if bad(args, kwargs):
                raise error("array is too big")
            return original(*args, **kwargs)

        return call

    is_bad = {
        "read": (soundfile.SoundFile, "read", lambda args, _: args[0].samplerate == 22_050),
        "resample": (librosa, "resample", lambda *_: True),
        "write": (soundfile, "write", lambda *_: True),
    }
    owner, name, bad = is_bad[where]
    monkeypatch.setattr(owner, name, fail_of(getattr(owner, name), bad))
    folder = prepare(source, data_dir=tmp_path / "data")
    assert len(load_manifest(tmp_path / "data", split="train")) == 4
    (skipped,) = (folder / "skipped.tsv").read_text().splitlines()[1:]
    assert skipped.startswith("bad.wav\t") and "array is too big" in skipped


def test_features_match_librispeech_lazy_decode(hostile):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.datasets.librispeech import librispeech_dataset_builder as official

    ours = AudioFolder(data_dir=hostile[1]).info.features
    theirs = official.Builder(config="lazy_decode", data_dir=hostile[1]).info.features
    shared = sorted(set(theirs) - {"chapter_id"})
    for name in shared:
        assert type(ours[name]) is type(theirs[name])
        assert ours[name].to_json() == theirs[name].to_json()
    example = next(iter(AudioFolder(data_dir=hostile[1]).as_data_source(
        "train", decoders={"speech": tfds.decode.SkipDecoding()}
    )))  # fmt: skip
    assert isinstance(example["speech"], bytes) and example["sample_rate"] == 16_000
    assert set(example) == {*shared, "speaker", "language", "num_samples", "sample_rate"}


def dataset_state(data_dir: Path) -> dict:
    paths = [path for path in (data_dir / "audio_folder").rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def test_nothing_is_redone_and_a_changed_source_is_noticed(tmp_path, capsys, monkeypatch):
    source, data_dir = make_corpus(tmp_path / "source"), tmp_path / "data"
    prepare(source, data_dir=data_dir)
    before = dataset_state(data_dir)
    capsys.readouterr()
    prepare(source, data_dir=data_dir)
    assert "nothing to do" in capsys.readouterr().out
    assert dataset_state(data_dir) == before

    # phones that came later are added, and nothing else is written
    (source / "phones.tsv").write_text("file\tstart_s\tend_s\tphone\n1-7-0000\t0\t0.5\tAA\n")
    prepare(source, data_dir=data_dir)
    assert "phones of 1 utterances" in capsys.readouterr().out
    phones = "file\tstart_s\tend_s\tphone\n1/7/1-7-0000\t0.0\t0.5\tAA\n"
    assert (data_dir / "audio_folder/1.0.0/phones.tsv").read_text() == phones
    assert {k: v for k, v in dataset_state(data_dir).items() if "phones" not in k} == before

    soundfile.write(source / "new.wav", speech(3), 16_000)
    checked, original = [], checking._check_file
    noted = lambda file, **kw: checked.append(file.path) or original(file, **kw)
    monkeypatch.setattr(checking, "_check_file", noted)
    prepare(source, data_dir=data_dir)
    assert "has changed" in capsys.readouterr().out
    assert checked == ["new.wav"]  # the journal knows the others
    assert "new" in load_manifest(data_dir, split="train").ids

    other = make_corpus(tmp_path / "other", count=2)
    with pytest.raises(SourceError, match="holds a dataset made from .*source, not from .*other"):
        prepare(other, data_dir=data_dir)


def test_speakers_texts_and_splits_reach_the_manifest(tmp_path, capsys):
    source, data_dir = make_corpus(tmp_path / "source"), tmp_path / "data"
    (source / "1/7/1-7.trans.txt").write_text("1-7-0000 ONE\n1-7-0002 TWO\n")
    prepare(source, data_dir=data_dir)
    manifest = load_manifest(data_dir, split="train")
    texts = dict(zip(manifest.ids, manifest.texts, strict=True))
    assert texts["1/7/1-7-0000"] == "ONE" and texts["2/7/2-7-0001"] == ""
    assert set(manifest.speakers) == {"1", "2"}
    rows = "1/7/1-7-0000\tone\ttrain-clean-100\n2/7/2-7-0001.flac\ttwo\tdev\n"
    (source / "transcripts.tsv").write_text("file\ttext\tsplit\n" + rows)
    prepare(source, data_dir=data_dir)
    assert "2 left out" in capsys.readouterr().out
    assert load_manifest(data_dir, split="train-clean-100").texts.tolist() == ["one"]
    assert load_manifest(data_dir, split="dev").texts.tolist() == ["two"]
    assert len(load_manifest(data_dir, split="dev+train-clean-100[:100%]")) == 2


@pytest.fixture(scope="module")
def indexed(tmp_path_factory) -> Path:
    """The first minute of the English prompts, cut by the rows of the embedded index."""
    source = tmp_path_factory.mktemp("indexed")
    soundfile.write(source / "asterisk_en.flac", speech(60, start=0), 16_000)
    lines = (ROOT / "data/embedded/index.tsv").read_text().splitlines()
    rows = [line.replace("asterisk_en.ogg", "asterisk_en.flac") for line in lines[1:12]]
    (source / "index.tsv").write_text("\n".join([lines[0], *rows]) + "\n")
    return source


def test_an_index_cuts_a_shard_losslessly(indexed, tmp_path):
    prepare(indexed, data_dir=tmp_path)
    shard = soundfile.read(indexed / "asterisk_en.flac", dtype="int16")[0]
    with open(indexed / "index.tsv") as file:
        table = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    rows = {f"asterisk_en/{row['file']}": row for row in table}
    seen = set()
    for split in ("train", "validation"):
        manifest = load_manifest(tmp_path, split=split)
        records = Records(tmp_path, split=split)
        for i, id_ in enumerate(manifest.ids):
            row, start = rows[id_], int(rows[id_]["start_sample"])
            samples = audio.load(records[i][0], name=id_) * 32768
            np.testing.assert_array_equal(samples, shard[start : start + int(row["num_samples"])])
            assert (manifest.texts[i], manifest.languages[i]) == (row["text"], "en")
            assert row["split"] == split and manifest.speakers[i] == "allison"
            seen.add(id_)
    assert seen == set(rows)


def test_an_index_beyond_the_end_of_its_file_names_the_line(indexed, tmp_path):
    source = shutil.copytree(indexed, tmp_path / "source")
    soundfile.write(source / "asterisk_en.flac", speech(10, start=0), 16_000)
    assert "index.tsv, line 5: ends at sample" in run_error(source, tmp_path / "data")


def run_error(source: Path, data_dir: Path) -> str:
    message = prepare_error(f"--source={source}", f"--data_dir={data_dir}")
    assert "\n" not in message and "Traceback" not in message
    return message


def test_errors_are_one_clear_paragraph(tmp_path):
    source = make_corpus(tmp_path / "source", count=1)
    (tmp_path / "empty").mkdir()
    assert "no audio found" in run_error(tmp_path / "empty", tmp_path / "data")
    assert "found nothing" in run_error(tmp_path / "gone", tmp_path / "data")
    (tmp_path / "file").touch()
    assert "cannot be written" in run_error(source, tmp_path / "file/data")
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "x.wav").touch()
    message = run_error(bad, tmp_path / "data")
    assert "none of its 1 utterances can be used" in message
    assert "x.wav: the file is empty" in message
    assert not (tmp_path / "data/audio_folder").exists()


def test_pcm16_stores_the_same_samples_and_is_written_anew(tmp_path, capsys):
    source, data_dir = make_corpus(tmp_path / "source"), tmp_path / "data"
    soundfile.write(source / "cd.wav", speech(1), 44_100)
    prepare(source, data_dir=data_dir)
    originals = records_by_id(data_dir)
    expected = {id_: audio.load(content, name=id_) for id_, content in originals.items()}
    lengths = load_manifest(data_dir, split="train").fingerprint
    prepare(source, data_dir=data_dir, encoding="pcm16")
    assert "has another encoding" in capsys.readouterr().out
    for id_, content in records_by_id(data_dir).items():
        assert content[:4] == b"RIFF" and len(content) == 44 + 2 * len(expected[id_])
        np.testing.assert_array_equal(audio.load(content, name=id_), expected[id_])
        reference = soundfile.read(io.BytesIO(content), dtype="float32")[0]
        np.testing.assert_array_equal(reference, expected[id_])
    assert load_manifest(data_dir, split="train").fingerprint == lengths
    prepare(source, data_dir=data_dir, encoding="pcm16")
    assert "nothing to do" in capsys.readouterr().out


SLOW_PREPARE = """
import sys, time
from dinosr_jax.data.prepare import audio_folder, checking
check, written = checking._check_file, audio_folder.stored_bytes
def slow_check(file, **kwargs):
    time.sleep(0.15)
    return check(file, **kwargs)
def slow_write(file, **kwargs):
    time.sleep(0.2)
    yield from written(file, **kwargs)
if sys.argv[3] == "check":
    checking._check_file = slow_check
else:
    audio_folder.stored_bytes = slow_write
audio_folder.prepare(sys.argv[1], data_dir=sys.argv[2], num_workers=1)
"""


@pytest.mark.parametrize(("code", "is_error"), [("ENOSYS", False), ("EIO", True)])
def test_a_lock_that_fails_is_not_another_run(tmp_path, monkeypatch, caplog, code, is_error):
    def fail(*_):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output") if is_error else contextlib.nullcontext():
        with audio_folder.locked(tmp_path / "preparation"):
            pass
    assert ("has no locks" in caplog.text) != is_error


def test_kill_and_restart(tmp_path, capsys, monkeypatch):
    source, data_dir = make_corpus(tmp_path / "source", count=12), tmp_path / "data"
    soundfile.write(source / "cd.wav", speech(1), 44_100)
    journal = data_dir / "preparation/journal.jsonl"

    def num_checked():
        return journal.read_text().count("\n[") if journal.exists() else 0

    process = run_until(lambda: num_checked() >= 3, SLOW_PREPARE, source, data_dir, "check")
    with pytest.raises(SourceError, match="another run is preparing it"):
        prepare(source, data_dir=data_dir)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (data_dir / "audio_folder").exists()
    before = num_checked()
    with open(journal, "a") as file:
        file.write('[1, "half a li')  # as a kill in the middle of a line leaves it

    build = data_dir / "preparation/build"
    writing = build / "**/incomplete*"  # pathlib's glob raises where a folder is removed under it
    is_writing = lambda: any(glob.iglob(str(writing), recursive=True))
    process = run_until(is_writing, SLOW_PREPARE, source, data_dir, "write")
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 3 <= before < num_checked() == 13 + 1  # the half line looks like one
    assert not (data_dir / "audio_folder").exists()

    monkeypatch.setattr(checking, "_check_file", None)  # everything is in the journal
    prepare(source, data_dir=data_dir)
    assert not build.exists()
    monkeypatch.undo()
    prepare(source, data_dir=tmp_path / "in one go")
    killed = load_manifest(data_dir, split="train")
    whole = load_manifest(tmp_path / "in one go", split="train")
    assert killed.fingerprint == whole.fingerprint and len(whole) == 13
    left, right = records_by_id(data_dir), records_by_id(tmp_path / "in one go")
    assert left == right and list(left) == list(right)


def test_converted_files_that_are_gone_are_made_again(tmp_path):
    source, data_dir = make_corpus(tmp_path / "source", count=2), tmp_path / "data"
    soundfile.write(source / "cd.wav", speech(1), 44_100)
    prepare(source, data_dir=data_dir)
    shutil.rmtree(data_dir / "audio_folder")
    prepare(source, data_dir=data_dir)
    assert sorted(load_manifest(data_dir, split="train").speakers) == ["1", "2", "source"]


def test_journal_of_an_older_format_is_not_believed(tmp_path):
    source, data_dir = make_corpus(tmp_path / "source", count=1), tmp_path / "data"
    prepare(source, data_dir=data_dir)
    journal = data_dir / "preparation/journal.jsonl"
    _, *entry = json.loads(journal.read_text().split("\n")[1])
    journal.write_text(json.dumps([0, entry[0], ["silent"], [0], None]) + "\n")
    shutil.rmtree(data_dir / "audio_folder")
    prepare(source, data_dir=data_dir)
    assert len(load_manifest(data_dir, split="train")) == 1


def test_help_is_fast_and_imports_no_tensorflow():
    code = "import sys\nfrom dinosr_jax.cli import cli\n"
    code += "try: cli(['prepare', '--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'tensorflow', 'jax', 'librosa'} & set(sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    assert b"--num_workers" in result.stdout
