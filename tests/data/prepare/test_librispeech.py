"""LibriSpeech from archives in OpenSLR's layout, through TFDS' own builder; bad and killed ones."""

import errno
import glob
import io
import shlex
import shutil
import signal
import socket
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds
from click.testing import CliRunner
from tensorflow_datasets.datasets.librispeech import librispeech_dataset_builder as official

from dinosr_jax.cli import cli
from dinosr_jax.data import audio
from dinosr_jax.data.batches.pipeline import open_split
from dinosr_jax.data.manifest import ManifestError, load_manifest
from dinosr_jax.data.prepare import archives as archives_module
from dinosr_jax.data.prepare import librispeech, librispeech_builder
from tests.prepared_speech import (
    data_config,
    prepare_error,
    prepare_well,
    records_by_id,
    run_until,
    skipped_in,
    speech,
)

VOICES = ("asterisk_en", "asterisk_es", "asterisk_fr")
SIZES = {"dev-clean": 6, "train-clean-100": 9, "train-clean-360": 7}
SPEAKERS = ";ID  |SEX| SUBSET           |MINUTES| NAME\n14 | F | train-clean-360  | 25.03 | a | b\n"
CHAPTERS = (
    ";ID |READER|MINUTES| SUBSET | PROJ.|BOOK ID| CH. TITLE\n7 | 14 | 8 | s | 1 | 2 | t | p\n"
)
DATASET = "librispeech/lazy_decode"


def write_subset(folder: Path, subset: str, count: int) -> Path:
    """LibriSpeech/<subset>/speaker/chapter/*.flac with transcripts, and the two tables."""
    base = folder / "LibriSpeech"
    for number in range(count):
        speaker = 100 * (1 + list(SIZES).index(subset)) + number % 3
        where = {"voice": VOICES[number % 3], "start": 40_000 * number}
        samples = speech(16_000 + 4_000 * number, **where)
        chapter = base / subset / str(speaker) / "7"
        chapter.mkdir(parents=True, exist_ok=True)
        name = f"{speaker}-7-{number:04d}"
        soundfile.write(chapter / f"{name}.flac", samples, 16_000)
        with open(chapter / f"{speaker}-7.trans.txt", "a") as file:
            file.write(f"{name} UTTERANCE {number}\n")
    (base / "SPEAKERS.TXT").write_text(SPEAKERS)
    (base / "CHAPTERS.TXT").write_text(CHAPTERS)
    return base


def pack(base: Path, archive: Path) -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(base, arcname="LibriSpeech")
    return archive


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    for subset, count in SIZES.items():
        write_subset(folder / subset, subset, count)
    return folder


@pytest.fixture(scope="module")
def archives(unpacked, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    for subset in SIZES:
        pack(unpacked / subset / "LibriSpeech", folder / f"{subset}.tar.gz")
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(tfds.download.DownloadManager, "download", refuse)


def run_well(data_dir: Path, *options: str) -> str:
    return prepare_well("--dataset=librispeech", f"--data_dir={data_dir}", *options)


def run_error(data_dir: Path, *options: str) -> str:
    return prepare_error("--dataset=librispeech", f"--data_dir={data_dir}", *options)


@pytest.fixture(scope="module")
def data_dir(archives, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    splits = ["dev_clean", "train_clean100"]
    librispeech.prepare_librispeech(folder, splits=splits, archives=archives)
    return folder


def stored(data_dir: Path, split: str) -> dict[str, bytes]:
    return records_by_id(data_dir, split=split, dataset=DATASET)


def files_by_id(folder: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in folder.rglob("*.flac")}


def test_the_original_bytes_and_tables_are_stored(data_dir, unpacked):
    for split, subset in (("dev_clean", "dev-clean"), ("train_clean100", "train-clean-100")):
        files = stored(data_dir, split)
        assert files == files_by_id(unpacked / subset) and len(files) == SIZES[subset]
        manifest = load_manifest(data_dir, dataset=DATASET, split=split)
        for id_, speaker, text in zip(manifest.ids, manifest.speakers, manifest.texts, strict=True):
            assert id_.split("-")[0] == speaker and text == f"UTTERANCE {int(id_.split('-')[2])}"


def test_it_is_a_dataset_of_tfds_own_librispeech(data_dir, unpacked):
    builder = official.Builder(config="lazy_decode", data_dir=data_dir)
    assert builder.info.file_format.value == "array_record"
    assert sorted(builder.info.splits) == ["dev_clean", "train_clean100"]
    assert builder.info.splits["train_clean100"].num_examples == 9
    assert builder.info.metadata["speakers"]["14"]["gender"] == "F"
    examples = builder.as_data_source("dev_clean", decoders={"speech": tfds.decode.SkipDecoding()})
    files = files_by_id(unpacked / "dev-clean")
    for example in examples:
        assert example["speech"] == files[example["id"].decode()] and example["chapter_id"] == 7
    assert not list((data_dir / "preparation").glob("librispeech*"))


def test_pcm16_gives_the_same_batches(data_dir, archives, tmp_path):
    options = (f"--archives={archives}", "--split=train_clean100", "--encoding=pcm16")
    assert "9 utterances" in run_well(tmp_path, *options)
    contents = stored(tmp_path, "train_clean100")
    for id_, flac in stored(data_dir, "train_clean100").items():
        samples = soundfile.read(io.BytesIO(flac), dtype="int16")[0]
        assert contents[id_][:4] == b"RIFF" and contents[id_][44:] == samples.tobytes()
    changes = {"dataset": DATASET, "max_batch_seconds": 8.0, "max_rungs": 3, "batch_multiple": 2}
    opened = lambda folder: open_split(
        data_config(folder, **changes), split="train_clean100", seed=1
    )
    left, right = map(opened, (data_dir, tmp_path))
    for step in range(left.plan.num_batches):
        one, other = left.make_batch(step), right.make_batch(step)
        np.testing.assert_array_equal(one.waveforms, other.waveforms)
        assert one.ids == other.ids
    message = run_error(tmp_path, f"--archives={archives}", "--split=dev_clean")
    assert "was prepared with --encoding=pcm16, not original" in message


def state(data_dir: Path) -> dict:
    folder = data_dir / DATASET / "2.1.2"
    return {
        path.name: (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.iterdir()
        if "manifest" not in path.name
    }


def test_splits_are_added_and_nothing_is_made_twice(archives, tmp_path, monkeypatch):
    run_well(tmp_path, f"--archives={archives}", "--split=dev_clean")
    before = state(tmp_path)
    records = [name for name in before if "array_record" in name]
    assert "nothing to do" in run_well(tmp_path, "--split=dev_clean")  # no archive, no network
    assert state(tmp_path) == before
    run_well(tmp_path, f"--archives={archives}", "--split=dev_clean,train_clean360")
    after = state(tmp_path)
    assert all(after[name] == before[name] for name in records)
    info = tfds.builder_from_directory(tmp_path / DATASET / "2.1.2").info
    sizes = {name: split.num_examples for name, split in info.splits.items()}
    assert sizes == {"dev_clean": 6, "train_clean360": 7}
    assert len(load_manifest(tmp_path, dataset=DATASET, split="dev_clean+train_clean360")) == 13


def test_missing_splits_and_archives_are_named(data_dir, archives, tmp_path):
    message = run_error(tmp_path, f"--archives={archives}")
    for name in ("test-clean.tar.gz", "train-other-500.tar.gz", "--split=", "dev-clean.tar.gz"):
        assert name in message
    assert "expected a folder" in run_error(tmp_path, f"--archives={tmp_path / 'gone'}")
    assert "train_clean10 unknown" in run_error(tmp_path, "--split=train_clean10")
    assert not list(tmp_path.rglob("*.array_record*"))
    with pytest.raises(ManifestError) as caught:
        load_manifest(data_dir, dataset=DATASET, split="train_clean100+train_other500")
    command = f"prepare --dataset=librispeech --data_dir={data_dir} --split=train_other500"
    assert command in str(caught.value)
    with pytest.raises(ManifestError, match="prepare --dataset=librispeech --data_dir=.*/nothing"):
        load_manifest(tmp_path / "nothing", dataset=DATASET, split="dev_clean")


def cut(archive: Path, to: Path, share: float) -> None:
    content = archive.read_bytes()
    to.write_bytes(content[: int(len(content) * share)])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.9999])
def test_a_truncated_archive_is_refused_and_costs_nothing(archives, tmp_path, share):
    folder = shutil.copytree(archives, tmp_path / "archives")
    cut(archives / "train-clean-100.tar.gz", folder / "train-clean-100.tar.gz", share)
    options = f"--archives={folder}", "--split=dev_clean,train_clean100"
    message = run_error(tmp_path / "data", *options)
    assert "train-clean-100.tar.gz: truncated or corrupt" in message and "Download it" in message
    assert not (tmp_path / "data/librispeech").exists()
    shutil.copy(archives / "train-clean-100.tar.gz", folder)
    if share == 0.9:
        assert "dev_clean was written before" in run_well(tmp_path / "data", *options)


def test_other_content_than_the_name_says_is_refused(archives, unpacked, tmp_path, monkeypatch):
    folder = tmp_path / "archives"
    folder.mkdir()
    target = folder / "dev-clean.tar.gz"
    options = f"--archives={folder}", "--split=dev_clean"
    shutil.copy(archives / "train-clean-100.tar.gz", target)
    assert "expected dev-clean" in run_error(tmp_path / "data", *options)
    target.write_text("<html>404</html>" * 99)
    assert "truncated or corrupt" in run_error(tmp_path / "data", *options)
    base = shutil.copytree(unpacked / "dev-clean/LibriSpeech", tmp_path / "base")
    (base / "SPEAKERS.TXT").write_text("fourteen | F\n")
    pack(base, target)
    assert "SPEAKERS.TXT or CHAPTERS.TXT cannot" in run_error(tmp_path / "data", *options)
    (base / "SPEAKERS.TXT").unlink()
    pack(base, target)
    assert "SPEAKERS.TXT and CHAPTERS.TXT" in run_error(tmp_path / "data", *options)
    shutil.copy(archives / "dev-clean.tar.gz", target)
    url = librispeech.URLS["dev_clean"]
    size = types.SimpleNamespace(size=target.stat().st_size, checksum="0" * 64)
    monkeypatch.setitem(librispeech.RECORDED, url, size)
    assert "another content (sha256" in run_error(tmp_path / "data", *options)
    assert not (tmp_path / "data/librispeech").exists()


def spoil(base: Path) -> dict[str, str]:
    """Damages a subset; the reasons that are expected, by a part of the name."""
    chapter = base / "train-clean-100/200/7"
    flac = sorted(chapter.glob("*.flac"))
    content = flac[0].read_bytes()
    flac[0].write_bytes(content[: len(content) // 2])
    flac[1].unlink()
    other = base / "train-clean-100/201/7"
    transcript = other / "201-7.trans.txt"
    lines = transcript.read_text().splitlines()
    lines[0] = lines[0].split()[0]  # no text
    lines += ["", lines[1], "not-an-id HELLO", "1-1-../../../../x HELLO", "201-7-0900 GONE"]
    transcript.write_bytes("\r\n".join(lines).encode() + b"\n201-7-0001 \xff\xfe\n")
    (base / "train-clean-100/202/7/202-7.trans.txt").unlink()
    lone = base / "train-clean-100/202/8"
    lone.mkdir()
    for name, samples, rate in (
        ("202-8-0001", np.arange(8_000, dtype=np.int16), 8_000),
        ("202-8-0002", np.zeros(16_000, np.int16), 16_000),
        ("202-8-0003", np.arange(300, dtype=np.int16), 16_000),
        ("202-8-0004", np.arange(16_000, dtype=np.int16), 16_000),
    ):
        soundfile.write(lone / f"{name}.flac", samples, rate)
    (lone / "x.txt").write_text("".join(f"202-8-000{n} TEXT\n" for n in range(1, 5)))
    return {
        flac[0].stem: "truncated, corrupt",
        flac[1].stem: "the recording is missing",
        "201-7.trans.txt, line 1": "not an id",
        lines[1].split()[0]: "listed again",
        "201-7-0900": "the recording is missing",
        "202-7-0002": "no *.trans.txt",
        "202-8-0001": "8000 Hz",
        "202-8-0002": "silent",
        "202-8-0003": "too short",
    }


def test_damaged_utterances_are_left_out_and_listed(unpacked, tmp_path):
    base = shutil.copytree(unpacked / "train-clean-100/LibriSpeech", tmp_path / "base")
    expected = spoil(base)
    pack(base, tmp_path / "archives/train-clean-100.tar.gz")
    options = f"--archives={tmp_path / 'archives'}", "--split=train_clean100"
    printed = run_well(tmp_path / "data", *options)
    skipped = skipped_in(tmp_path / f"data/{DATASET}/2.1.2").items()
    for name, reason in expected.items():
        assert any(name in where and reason in why for where, why in skipped), (name, skipped)
    assert f"{len(skipped)} left out" in printed
    assert set(stored(tmp_path / "data", "train_clean100")) == {
        "200-7-0006", "201-7-0004", "201-7-0007", "202-8-0004"
    }  # fmt: skip


def test_an_archive_writes_nowhere_but_in_its_folder(archives, tmp_path):
    evil = tmp_path / "archives/dev-clean.tar.gz"
    evil.parent.mkdir()
    with tarfile.open(archives / "dev-clean.tar.gz") as whole, tarfile.open(evil, "w:gz") as tar:
        for member in whole:
            tar.addfile(member, whole.extractfile(member) if member.isfile() else None)
        for name in ("LibriSpeech/../../evil", "/tmp/dinosr_evil", "LibriSpeech/a/../../../evil"):
            member = tarfile.TarInfo(name)
            member.size = 4
            tar.addfile(member, io.BytesIO(b"evil"))
        link = tarfile.TarInfo("LibriSpeech/dev-clean/100/7/100-7-0099.flac")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    run_well(tmp_path / "data", f"--archives={evil.parent}", "--split=dev_clean")
    assert len(stored(tmp_path / "data", "dev_clean")) == 6
    assert not list(tmp_path.rglob("*evil")) and not Path("/tmp/dinosr_evil").exists()


def test_nothing_usable_is_an_error(unpacked, tmp_path):
    base = shutil.copytree(unpacked / "dev-clean/LibriSpeech", tmp_path / "base")
    for path in base.rglob("*.flac"):
        path.write_bytes(b"fLaC")
    pack(base, tmp_path / "archives/dev-clean.tar.gz")
    options = f"--archives={tmp_path / 'archives'}", "--split=dev_clean"
    assert "none of its 6 utterances can be used" in run_error(tmp_path / "data", *options)
    for path in base.rglob("*.trans.txt"):
        path.unlink()
    pack(base, tmp_path / "archives/dev-clean.tar.gz")
    assert "none of its 6 utterances can be used" in run_error(tmp_path / "data", *options)
    assert not (tmp_path / "data/librispeech").exists()


def test_a_full_disk_is_said_before_and_meanwhile(archives, tmp_path, monkeypatch):
    options = f"--archives={archives}", "--split=dev_clean"
    with monkeypatch.context() as patch:
        little = types.SimpleNamespace(free=10**5)
        patch.setattr(librispeech.shutil, "disk_usage", lambda path: little)
        assert "0.0 GB are free" in run_error(tmp_path, *options)
    with monkeypatch.context() as patch:

        def full(*args, **kwargs):
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(tarfile.TarFile, "extractfile", full)
        assert "No space left on device. Check the disk" in run_error(tmp_path, *options)
    with monkeypatch.context() as patch:

        def no_room(path, examples):
            raise RuntimeError("write() failed: No space left on device; writing x; at byte 1")

        adapter = tfds.core.file_adapters.ArrayRecordFileAdapter
        patch.setattr(adapter, "write_examples", no_room)
        assert "No space left on device. Check the disk" in run_error(tmp_path, *options)
    assert not (tmp_path / "librispeech").exists()
    monkeypatch.setattr(archives_module, "_extract", None)  # it was unpacked before
    run_well(tmp_path, *options)


SLOW = """
import sys, time
from dinosr_jax.data.prepare import archives, librispeech, librispeech_builder
stored, extract = librispeech_builder._stored_bytes, archives.tarfile.TarFile.extractfile
def slow(original):
    def wait(*args, **kwargs):
        time.sleep(0.2)
        return original(*args, **kwargs)
    return wait
if sys.argv[3] == "unpack":
    archives.tarfile.TarFile.extractfile = slow(extract)
else:
    librispeech_builder._stored_bytes = slow(stored)
librispeech.prepare_librispeech(
    sys.argv[1], archives=sys.argv[2], splits=["dev_clean", "train_clean100"], num_workers=1)
"""


@pytest.mark.parametrize(
    ("slow", "sign"),
    [
        pytest.param("unpack", "train_clean100*.partial/**/*.flac", marks=pytest.mark.slow),
        ("write", "*/**/incomplete*"),
    ],
)
def test_kill_and_restart(archives, data_dir, tmp_path, monkeypatch, slow, sign):
    work_dir = tmp_path / "preparation/librispeech"
    # pathlib's glob raises where a folder is removed under it
    there = lambda pattern: any(glob.iglob(pattern, root_dir=work_dir, recursive=True))
    is_written = "dev_clean-*-original/librispeech/lazy_decode/2.1.2"
    is_half_way = lambda: there(is_written) and there(sign)
    process = run_until(is_half_way, SLOW, tmp_path, archives, slow)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "librispeech").exists()
    written = []
    original = librispeech_builder._stored_bytes
    noted = lambda speech, *, name, **kw: written.append(name) or original(speech, name=name, **kw)
    monkeypatch.setattr(librispeech_builder, "_stored_bytes", noted)
    printed = run_well(tmp_path, f"--archives={archives}", "--split=dev_clean,train_clean100")
    assert "dev_clean was written before" in printed and len(written) == 9
    for split in ("dev_clean", "train_clean100"):
        assert stored(tmp_path, split) == stored(data_dir, split)


def test_killed_while_splits_are_added(archives, data_dir, tmp_path, monkeypatch):
    run_well(tmp_path, f"--archives={archives}", "--split=dev_clean")
    options = f"--archives={archives}", "--split=train_clean100"

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(librispeech, "write_skipped", killed)  # the records are in place by then
        command = ["prepare", "--dataset=librispeech", f"--data_dir={tmp_path}", *options]
        assert CliRunner().invoke(cli, command).exit_code != 0
    info = tfds.builder_from_directory(tmp_path / DATASET / "2.1.2").info
    assert list(info.splits) == ["dev_clean"]
    run_well(tmp_path, *options)
    for split in ("dev_clean", "train_clean100"):
        assert stored(tmp_path, split) == stored(data_dir, split)


class Earlier(official.Builder, skip_registration=True):
    """TFDS' builder as a user may have run it: any config, any format of files."""

    name = "librispeech"
    code_path = None
    get_metadata = official.Builder.get_metadata
    source: Path

    def _split_generators(self, dl_manager):
        unpack = lambda urls: {"dev_clean": self.source}
        return super()._split_generators(types.SimpleNamespace(download_and_extract=unpack))

    def _generate_examples(self, directory):
        for key, example in super()._generate_examples(directory):
            if not self.builder_config.lazy_decode:  # as pydub would decode it
                example["speech"] = soundfile.read(example["speech"], dtype="int16")[0]
            yield key, example


@pytest.mark.parametrize(
    ("name", "file_format"),
    [("lazy_decode", "tfrecord"), ("default", "tfrecord"), ("default", "array_record")],
)
def test_what_tfds_prepared_earlier_is_converted_by_the_command_in_the_error(
    unpacked, data_dir, tmp_path, name, file_format
):
    Earlier.source = tfds.core.Path(unpacked / "dev-clean")
    builder = Earlier(config=name, data_dir=tmp_path / "old", file_format=file_format)
    builder.download_and_prepare()
    for dataset in {DATASET, f"librispeech/{name}"}:
        with pytest.raises(ManifestError) as caught:
            load_manifest(tmp_path / "old", dataset=dataset, split="dev_clean")
    command = str(caught.value).split("python -m dinosr_jax ")[1].split(", and read")[0]
    if name == "lazy_decode":  # nothing can be added to files of another format
        assert "its records are tfrecord files" in run_error(tmp_path / "old", "--split=test_clean")
    result = CliRunner().invoke(cli, shlex.split(command))
    assert result.exit_code == 0, result.output
    target = Path(command.split("--data_dir=")[1])
    assert tmp_path in target.parents
    converted, expected = stored(target, "dev_clean"), stored(data_dir, "dev_clean")
    assert set(converted) == set(expected)
    for id_, content in expected.items():
        if name == "lazy_decode":
            assert converted[id_] == content
        left, right = (audio.load(c, name=id_) for c in (converted[id_], content))
        np.testing.assert_array_equal(left, right)
    info = tfds.builder_from_directory(target / DATASET / "2.1.2").info
    assert info.metadata["speakers"]["14"]["gender"] == "F"


def test_what_is_no_librispeech_cannot_be_converted(tmp_path):
    message = run_error(tmp_path / "data", f"--source={tmp_path}")
    assert "not a librispeech dataset of TFDS" in message


def test_a_download_that_fails_says_what_to_do(tmp_path, monkeypatch):
    def fail(self, url):
        assert url == "http://www.openslr.org/resources/12/dev-clean.tar.gz"
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(tfds.download.DownloadManager, "download", fail)
    message = run_error(tmp_path, "--split=dev_clean")
    assert "could not be downloaded" in message and "--archives=FOLDER" in message


def test_downloaded_archives_are_used(archives, data_dir, tmp_path, monkeypatch):
    download = lambda self, url: archives / url.rsplit("/", 1)[-1]
    monkeypatch.setattr(tfds.download.DownloadManager, "download", download)
    run_well(tmp_path, "--split=dev_clean")
    assert stored(tmp_path, "dev_clean") == stored(data_dir, "dev_clean")


def test_every_archive_has_a_recorded_size_and_checksum():
    for url in official._DL_URLS.values():
        recorded = librispeech.RECORDED[url]
        assert len(recorded.checksum) == 64 and recorded.size > 3e8


def test_options_that_do_not_fit_are_refused(tmp_path):
    for options in (["--split=x", "--source=y"], [], ["--archives=a", "--source=b"]):
        result = CliRunner().invoke(cli, ["prepare", f"--data_dir={tmp_path}", *options])
        assert result.exit_code == 2
