"""A folder of bad files, shards, restarts and a full disk, without the command line."""

import contextlib
import errno
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from dinosr_jax import files
from dinosr_jax.data.audio import AudioError
from dinosr_jax.inference import outputs
from dinosr_jax.inference.features import feature_files
from dinosr_jax.inference.features.writer import extract_files
from tests.tiny_runs import tiny_model

NOISE = np.random.default_rng(0).standard_normal(16_000) / 10


@pytest.fixture(scope="module")
def model(compile_quickly):
    return tiny_model()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "in"
    (folder / "dir.wav").mkdir(parents=True)
    soundfile.write(folder / "dir.wav" / "é a.flac", NOISE, 16_000)
    soundfile.write(folder / "z.wav", NOISE[:9_000], 16_000, subtype="PCM_U8")
    return folder


def test_a_bad_folder_is_gone_through(model, folder, tmp_path):
    soundfile.write(folder / "ten_ms.wav", NOISE[:160], 16_000)
    (folder / "text.wav").write_text("no audio")
    (folder / "loop").symlink_to(folder)
    (folder / "self.wav").symlink_to("self.wav")
    os.mkfifo(folder / "fifo.wav")
    os.rename(folder / "z.wav", os.fsencode(folder) + b"/z\xff.wav")
    with pytest.raises(AudioError, match="text|ten_ms|self|fifo"):
        extract_files(model, folder, output=tmp_path / "stops", layer=1)
    found = extract_files(model, folder, output=tmp_path / "out", layer=1, bad="skip")
    assert (found.written, found.there_before, len(found.skipped)) == (2, 0, 4)
    rows = (tmp_path / "out" / "skipped.tsv").read_text().splitlines()
    assert sorted(row.split("\t")[0].rsplit("/", 1)[1] for row in rows[1:]) == [
        "fifo.wav", "self.wav", "ten_ms.wav", "text.wav",
    ]  # fmt: skip
    assert np.load(tmp_path / "out" / "dir.wav" / "é a.npy").shape == (49, 32)
    again = extract_files(model, folder, output=tmp_path / "out", layer=1, bad="skip")
    assert (again.written, again.there_before) == (0, 2)
    nothing = extract_files(
        model, folder / "text.wav", output=tmp_path / "none", layer=1, layout="fairseq", bad="skip"
    )
    assert (nothing.written, len(nothing.skipped)) == (0, 1)
    assert np.load(tmp_path / "none" / "features_0_1.npy").shape == (0, 32)
    assert (tmp_path / "none" / "features_0_1.len").read_text() == "0\n"
    with pytest.raises(outputs.OutputError, match="tensor: there 'block', asked for 'ffn'"):
        extract_files(model, folder, output=tmp_path / "out", layer=1, tensor="ffn", bad="skip")


def test_shards_are_the_files_in_the_order_of_the_manifest(model, folder, tmp_path):
    rows = "z.wav\t9000\nb.wav\t900\na.wav\t90\ndir.wav/é a.flac\t16000\n"
    (tmp_path / "m.tsv").write_text(f"{folder}\n{rows}")
    extract_files(model, folder, output=tmp_path / "files", layer=1)
    options = {"layer": 1, "layout": "fairseq", "name": "m"}
    with pytest.raises(AudioError, match="b.wav"):  # the first, before anything is computed
        extract_files(model, tmp_path / "m.tsv", output=tmp_path / "s", **options)
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["features.json"]
    for expected in (2, 0, 2), (0, 2, 0):  # done, and found complete
        found = extract_files(
            model, tmp_path / "m.tsv", output=tmp_path / "s", bad="skip", **options
        )
        assert (found.written, found.there_before, len(found.skipped)) == expected
        assert "b.wav\t" in (tmp_path / "s" / "skipped.tsv").read_text()
    assert (tmp_path / "s" / "m_0_1.len").read_text() == "27\n0\n0\n49\n"
    expected = [np.load(tmp_path / "files" / name) for name in ("z.npy", "dir.wav/é a.npy")]
    shard = np.load(tmp_path / "s" / "m_0_1.npy", mmap_mode="r")
    np.testing.assert_allclose(shard, np.concatenate(expected), atol=1e-5)


def test_a_list_without_lengths_has_the_same_features(model, folder, tmp_path):
    for number, count in enumerate(("", "\t16000")):
        (tmp_path / "m.tsv").write_text(f"{folder}\ndir.wav/é a.flac{count}\n")
        extract_files(model, tmp_path / "m.tsv", output=tmp_path / str(number), layer=1)
    one, other = (np.load(tmp_path / str(number) / "dir.wav/é a.npy") for number in range(2))
    assert one.shape == (49, 32) and (one == other).all()
    (tmp_path / "m.tsv").write_text(f"{folder}\ndir.wav/é a.flac\ngone.flac\n")
    with pytest.raises(AudioError, match=r"m\.tsv, line 3: no file .*gone\.flac; expected"):
        extract_files(model, tmp_path / "m.tsv", output=tmp_path / "2", layer=1)


def test_what_killed_processes_left_is_removed(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    mine = files.temporary_path(tmp_path)
    dead = mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{child.pid}-"))
    other = mine.with_name(dead.name.replace(".dinosr-", ".dinosr-elsewhere"))  # alive, maybe
    deeper = tmp_path / "layer_01" / dead.name
    deeper.parent.mkdir()
    for path in (mine, dead, other, deeper):
        path.touch()
    assert outputs.remove_stale(tmp_path, where="folder") == 1 and deeper.exists()
    assert outputs.remove_stale(tmp_path) == 1
    assert sorted(tmp_path.iterdir()) == sorted([mine, other, deeper.parent])


def test_a_full_disk_leaves_nothing_half_written(model, folder, tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(outputs.np.lib.format, "write_array_header_1_0", full)
        with pytest.raises(outputs.OutputError, match="disk is full.*Free space"):
            extract_files(model, folder, output=tmp_path / "out", layer=1)
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["dir.wav", "features.json"]
    assert extract_files(model, folder, output=tmp_path / "out", layer=1).written == 2


@pytest.mark.parametrize("layout", ["files", "fairseq"])
def test_files_that_a_power_cut_left_short_are_written_again(model, folder, tmp_path, layout):
    options = {"output": tmp_path / "out", "layer": 1, "layout": layout}
    with pytest.MonkeyPatch.context() as stopped:  # before the parts are joined
        stopped.setattr(feature_files, "join_shards", lambda *_, **__: sys.exit())
        with pytest.raises(SystemExit) if layout == "fairseq" else contextlib.nullcontext():
            extract_files(model, folder, **options)
    empty, short = sorted(p for p in (tmp_path / "out").rglob("*") if p.suffix in (".npy", ".part"))
    whole = np.load(short, allow_pickle=False)
    empty.write_bytes(b"")
    short.write_bytes(short.read_bytes()[:-4])
    found = extract_files(model, folder, **options)
    assert (found.written, found.there_before) == (2, 0)
    if layout == "files":
        assert outputs.is_whole(empty) and np.array_equal(np.load(short), whole)


def test_a_shard_without_a_usable_recording_is_empty(tmp_path):
    parts = [tmp_path / f"{k}.part" for k in range(3)]
    feature_files.join_shards(tmp_path / "m_1_4", parts, width=5, dtype=np.dtype(np.float16))
    found = np.load(tmp_path / "m_1_4.npy")
    assert found.shape == (0, 5) and found.dtype == np.float16
    assert (tmp_path / "m_1_4.len").read_text() == "0\n0\n0\n"


@pytest.mark.parametrize("id_", ["../x", "a/../../x", "/x", "a/.."])
def test_an_id_that_leads_out_of_the_folder_is_refused(tmp_path, id_):
    assert outputs.inside(tmp_path, "a/b..c.npy") == tmp_path / "a/b..c.npy"
    with pytest.raises(outputs.OutputError, match=f"would be written outside of {tmp_path}"):
        outputs.inside(tmp_path, id_)
