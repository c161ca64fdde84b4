"""Batches from real records: resumption, rows of hosts, damage, and a clean end."""

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dinosr_jax.data import audio
from dinosr_jax.data.batches.pipeline import PipelineError, open_split
from dinosr_jax.data.manifest import ManifestError
from dinosr_jax.data.prepare.audio_folder import prepare
from tests.prepared_speech import data_config as config
from tests.prepared_speech import read_batches as read
from tests.prepared_speech import write_parts

ROOT = Path(__file__).parents[3]
GENERATOR = np.random.Generator(np.random.Philox(key=2))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    write_parts(folder, GENERATOR.uniform(0.6, 4, 60), step=48_000)
    return folder


@pytest.fixture(scope="module")
def data(data_dir):
    return open_split(config(data_dir), split="train", seed=5)


def assert_same(left, right):
    assert len(left) == len(right) > 0
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a.waveforms, b.waveforms)
        assert (a.step, a.ids, a.num_bad) == (b.step, b.ids, b.num_bad)


def test_batches_hold_crops_of_whole_utterance_normalised_audio(data, source):
    for batch in read(data, 0, data.plan.num_batches):
        plan = data.plan.batch(batch.step)
        assert batch.waveforms.shape == (len(plan.indices), plan.num_samples)
        assert batch.waveforms.dtype == np.float32 and batch.num_bad == 0
        for row, id_ in enumerate(batch.ids):
            whole = soundfile.read(source / f"{id_}.flac", dtype="float64")[0]
            whole = (whole - whole.mean()) / np.sqrt(whole.var() + 1e-5)
            crop = whole[plan.starts[row] : plan.starts[row] + plan.num_samples]
            np.testing.assert_allclose(batch.waveforms[row], crop, atol=1e-5)


def test_what_is_too_short_is_left_out_and_counted(data, data_dir):
    everything = open_split(config(data_dir, min_seconds=0.1), split="train", seed=5)
    short = (everything.manifest.num_samples < 16_000).sum()
    assert data.left_out == short > 0 and everything.left_out == 0
    assert len(data.manifest) + data.left_out == 60
    assert data.fingerprint == data.manifest.fingerprint != everything.fingerprint


@pytest.mark.parametrize("start", [0, 1, 7, 1_000_003])
def test_resuming_at_any_step_is_exact(data, data_dir, start):
    fresh = open_split(config(data_dir, num_workers=3, prefetch_batches=1), split="train", seed=5)
    resumed = read(fresh, start, 3)
    assert [batch.step for batch in resumed] == [start, start + 1, start + 2]
    if start < 20:
        assert_same(read(data, 0, start + 3)[start:], resumed)
    assert_same([data.make_batch(start + i) for i in range(3)], resumed)


def test_waveforms_are_not_copied_on_their_way(data_dir):
    data = open_split(config(data_dir), split="train", seed=5)
    made, original = {}, data.make_batch

    def make_batch(step, **options):
        batch = original(step, **options)
        made[step] = batch.waveforms.ctypes.data
        return batch

    data.make_batch = make_batch
    with data.batches(0, 5) as batches:
        for batch in batches:
            assert batch.waveforms.ctypes.data == made[batch.step]


def test_an_endless_iterator_crosses_epochs(data):
    num_batches = data.plan.num_batches
    with data.batches(num_batches - 1) as batches:
        assert_same([next(batches), next(batches)], read(data, num_batches - 1, 2))
    with pytest.raises(StopIteration):
        next(batches)


def test_seeds_differ(data, data_dir):
    other = open_split(config(data_dir), split="train", seed=6)
    assert read(data, 0, 1)[0].ids != read(other, 0, 1)[0].ids


class Damaged:
    """Records of which some cannot be read, decoded or trusted."""

    def __init__(self, records, bad_ids):
        self.records, self.bad_ids = records, bad_ids

    def __getitem__(self, position):
        content, id_ = self.records[position]
        kind = self.bad_ids.get(id_)
        if kind == "unreadable":
            raise OSError("disk failure")
        if kind == "bit rot":
            content = content[: len(content) // 2]
        if kind == "shorter":
            content = audio.encode_flac(np.arange(9_000, dtype=np.int16))
        if kind == "another":
            id_ = "someone else"
        return content, id_


@pytest.mark.parametrize("kind", ["unreadable", "bit rot", "shorter", "another"])
def test_a_damaged_record_is_replaced_named_and_counted(data_dir, data, caplog, kind):
    (good,) = read(data, 2, 1)
    damaged = open_split(config(data_dir), split="train", seed=5)
    damaged._records = Damaged(damaged._records, dict.fromkeys([good.ids[0], good.ids[2]], kind))
    with caplog.at_level(logging.WARNING):
        (batch,) = read(damaged, 2, 1)
    assert batch.num_bad == 2
    assert batch.ids == [good.ids[1], good.ids[1], good.ids[1], *good.ids[3:]]
    np.testing.assert_array_equal(batch.waveforms[[0, 2]], good.waveforms[[1, 1]])
    np.testing.assert_array_equal(batch.waveforms[3:], good.waveforms[3:])
    assert f"DAMAGED RECORD {good.ids[0]}: " in caplog.text
    shares = ((0, 1, len(batch.ids)), (1, len(batch.ids), len(batch.ids)))
    upper, lower = (read(damaged, 2, 1, share=share)[0] for share in shares)
    joined = np.concatenate([upper.waveforms, lower.waveforms])
    np.testing.assert_array_equal(joined, batch.waveforms)
    assert (upper.num_bad, lower.num_bad) == (1, 1)


@pytest.mark.parametrize("num_hosts", [1, 2, 4])
def test_any_number_of_hosts_reads_the_same_global_batches(data_dir, data, num_hosts):
    """Rows joined over hosts, from a step in the middle, damaged records replaced on all alike."""
    bad = dict.fromkeys(data.manifest.ids[::4], "bit rot")
    whole = open_split(config(data_dir), split="train", seed=5)
    whole._records = Damaged(whole._records, bad)
    expected = [whole.make_batch(step) for step in range(17, 22)]
    hosts = []
    for host in range(num_hosts):
        own = open_split(config(data_dir, num_workers=1 + host), split="train", seed=5)
        own._records = Damaged(own._records, bad)
        hosts.append(read(own, 17, 5, share=(host, host + 1, num_hosts)))
    assert sum(batch.num_bad for batch in expected) > 0
    for step, batch in enumerate(expected):
        parts = [batches[step] for batches in hosts]
        joined = np.concatenate([part.waveforms for part in parts])
        np.testing.assert_array_equal(joined, batch.waveforms)
        assert sum([part.ids for part in parts], []) == batch.ids
        assert sum(part.num_bad for part in parts) == batch.num_bad


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_memory_stays_flat_over_epochs(data):
    num_batches = data.plan.num_batches
    for _ in data.batches(0, 3 * num_batches):
        pass
    before, read_mib = resident_mib(), 0.0
    for batch in data.batches(0, 25 * num_batches):
        read_mib += batch.waveforms.nbytes / 2**20
    assert resident_mib() - before < 0.3 * read_mib > 30


def test_a_batch_without_a_good_record_raises(data_dir, data):
    (good,) = read(data, 0, 1)
    damaged = open_split(config(data_dir), split="train", seed=5)
    damaged._records = Damaged(damaged._records, dict.fromkeys(good.ids, "bit rot"))
    with pytest.raises(PipelineError, match="step 0: all .* utterances of the batch are damaged"):
        read(damaged, 0, 3)


def test_bit_rot_on_disk_spoils_only_its_own_record(source, tmp_path, caplog):
    prepare(source, data_dir=tmp_path)
    untouched = read(open_split(config(tmp_path), split="train", seed=5), 0, 12)
    (path,) = (tmp_path / "audio_folder/1.0.0").glob("*array_record*")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 8] = b"\xaa" * 8
    stat = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    data = open_split(config(tmp_path), split="train", seed=5)
    batches = read(data, 0, data.plan.num_batches)
    assert sum(batch.num_bad for batch in batches) <= 1 and "DAMAGED RECORD" in caplog.text
    for before, after in zip(untouched, batches, strict=False):
        if not after.num_bad:
            np.testing.assert_array_equal(before.waveforms, after.waveforms)


def test_work_ahead_is_bounded(data_dir):
    data = open_split(config(data_dir, num_workers=2, prefetch_batches=3), split="train", seed=5)
    made, original = [], data.make_batch
    data.make_batch = lambda step, **options: made.append(step) or original(step, **options)
    with data.batches(0) as batches:
        next(batches)
        time.sleep(1)
        assert 2 <= len(made) <= 1 + 2 + 3 + 1


def test_abandoned_iterators_stop_their_threads(data):
    before = threading.active_count()
    for _ in range(5):
        next(data.batches(0))
    batches = data.batches(0)
    next(batches)
    batches.close()
    batches.close()
    assert threading.active_count() <= before + 1


SCRIPT = """
import sys, types
from dinosr_jax.data.batches.pipeline import open_split
config = types.SimpleNamespace(**{fields!r})
data = open_split(config, split="train", seed=5)
batches = data.batches(0)
print(next(batches).ids)
if {ending!r} == "exception":
    raise KeyError("on purpose")
if {ending!r} == "exit":
    sys.exit(3)
"""


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        pytest.param("end", 0, marks=pytest.mark.slow),
        pytest.param("exception", 1, marks=pytest.mark.slow),
        ("exit", 3),
    ],
)
def test_the_interpreter_ends_cleanly_half_way(data_dir, data, ending, status):
    script = SCRIPT.format(fields=vars(config(data_dir)), ending=ending)
    how = {"cwd": ROOT, "timeout": 300, "capture_output": True, "text": True}
    result = subprocess.run([sys.executable, "-c", script], **how)
    assert result.returncode == status, result.stderr
    assert result.stdout.strip() == str(read(data, 0, 1)[0].ids)
    assert "on purpose" in result.stderr or not result.stderr


def test_errors_say_what_to_do(data_dir, tmp_path):
    with pytest.raises(ManifestError, match="prepare --source"):
        open_split(config(tmp_path), split="train", seed=0)
    with pytest.raises(ManifestError, match=r"Expected one of \['train'\]"):
        open_split(config(data_dir), split="validation", seed=0)
    with pytest.raises(PipelineError, match="0 of 60 utterances .*min_seconds = 9"):
        open_split(config(data_dir, min_seconds=9), split="train", seed=0)
    few = r"[123] utterances .* batch_multiple = 4 .* --config\.data\.batch_multiple=[123] "
    with pytest.raises(PipelineError, match=few):
        open_split(config(data_dir), split="train[:3]", seed=0)
    none = r"holds no utterance; .* 60 in train\. Choose a larger"
    with pytest.raises(ManifestError, match=none):
        open_split(config(data_dir), split="train[99%:99%]", seed=0)


def test_tensorflow_sees_no_accelerator(data):
    import tensorflow as tf

    assert not tf.config.get_visible_devices("GPU") and not tf.config.get_visible_devices("TPU")
