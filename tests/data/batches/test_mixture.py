"""Several datasets that train together: weights, turns, resumption, and what is refused."""

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tensorflow as tf
from array_record.python import array_record_module

from dinosr_jax.config import parse
from dinosr_jax.data.batches.mixture import MixturePlan, open_mixture
from dinosr_jax.data.batches.pipeline import PipelineError, open_split
from dinosr_jax.data.manifest import ManifestError, dataset_folder
from dinosr_jax.data.prepare.audio_folder import prepare
from dinosr_jax.recipes import published_recipe
from tests.main_runs import records, run_main_py
from tests.prepared_speech import data_config, records_by_id, write_parts
from tests.prepared_speech import read_batches as read

ROOT = Path(__file__).parents[3]
SETS = {"asterisk_en": (40, 4.0), "asterisk_it": (16, 3.0)}
PLAN = {"max_batch_seconds": 12.0, "max_seconds": 3.0, "batch_multiple": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two prepared datasets whose ids are the same, below one folder."""
    folder = tmp_path_factory.mktemp("prepared")
    random = np.random.Generator(np.random.Philox(key=2))
    for name, (number, longest) in SETS.items():
        source = tmp_path_factory.mktemp(name)
        write_parts(source, random.uniform(0.6, longest, number), step=64_000, voice=name)
        prepare(source, data_dir=folder / name)
    return folder


def config(root, *mixture, **changed):
    fields = {"mixture": mixture, "max_batch_seconds": 12.0, "batch_multiple": 2}
    return data_config(root, **(fields | changed))


BOTH = (("asterisk_en", 1.0), ("asterisk_it", 2.5))


def random_lengths(size, *, key):
    random = np.random.Generator(np.random.Philox(key=key))
    return random.integers(8_000, 100_000, size)


def test_one_set_of_weight_1_gives_the_batches_of_no_mixture(root):
    alone = open_split(config(root / "asterisk_en"), split="train", seed=5)
    mixed = open_mixture(config(root, ("asterisk_en", 1)), split="train", seed=5)
    assert alone.batches_per_epoch == mixed.batches_per_epoch > 3
    assert alone.left_out == mixed.left_out > 0
    for a, b in zip(read(alone, 2, 12), read(mixed, 2, 12), strict=True):
        np.testing.assert_array_equal(a.waveforms, b.waveforms)
        assert [f"asterisk_en/{id_}" for id_ in a.ids] == b.ids
        assert alone.samples(a.step) == mixed.samples(b.step)


def test_rows_hold_the_speech_of_the_set_that_their_id_names(root):
    mixed = open_mixture(config(root, *BOTH), split="train", seed=5)
    alone = {name: records_by_id(root / name) for name in SETS}
    for batch in read(mixed, 0, mixed.plan.num_batches):
        planned = mixed.plan.batch(batch.step)
        for row, id_ in enumerate(batch.ids):
            name, own = id_.split("/")
            path = root / "one.flac"
            path.write_bytes(alone[name][own])
            whole = soundfile.read(path, dtype="float64")[0]
            whole = (whole - whole.mean()) / np.sqrt(whole.var() + 1e-5)
            crop = whole[planned.starts[row] : planned.starts[row] + planned.num_samples]
            np.testing.assert_allclose(batch.waveforms[row], crop, atol=1e-5)
        assert batch.num_bad == 0


@pytest.mark.parametrize("start", [0, 3, 41])
def test_resuming_at_any_step_is_exact_whatever_the_hosts(root, start):
    fresh = open_mixture(config(root, *BOTH, num_workers=3), split="train", seed=5)
    whole = read(open_mixture(config(root, *BOTH), split="train", seed=5), 0, start + 3)[start:]
    for resumed in (read(fresh, start, 3), [fresh.make_batch(start + k) for k in range(3)]):
        for a, b in zip(whole, resumed, strict=True):
            np.testing.assert_array_equal(a.waveforms, b.waveforms)
            assert (a.step, a.ids) == (b.step, b.ids)
    halves = [read(fresh, start, 3, share=(host, host + 1, 2)) for host in (0, 1)]
    for a, left, right in zip(whole, *halves, strict=True):
        joined = np.concatenate([left.waveforms, right.waveforms])
        np.testing.assert_array_equal(a.waveforms, joined)
        assert a.ids == left.ids + right.ids


def test_data_differs_with_the_sets_and_the_seed(root):
    one = open_mixture(config(root, *BOTH), split="train", seed=5)
    later = open_mixture(config(root, *BOTH), split="train", seed=6)
    assert read(one, 0, 1)[0].ids != read(later, 0, 1)[0].ids
    other = open_mixture(config(root, BOTH[0]), split="train", seed=5)
    assert one.fingerprint != other.fingerprint
    assert len(one.speakers) == len(one.manifest) == len(set(one.manifest.ids))


@pytest.mark.parametrize("weight", [0.25, 1 / 3, 0.5, 1.0, 1.7, 3.5])
def test_a_weight_counts_passes_over_a_set(weight):
    lengths = {"a": random_lengths(600, key=1), "b": random_lengths(240, key=2)}
    weights = {"a": 1.0, "b": weight}
    plan = MixturePlan(lengths, weights=weights, seed=7, **PLAN)
    again = MixturePlan(lengths, weights=weights, seed=7, **PLAN)
    epochs, used, every = 12, np.zeros(840), np.concatenate([lengths["a"], lengths["b"]])
    for step in reversed(range(epochs * plan.num_batches)):
        batch, other = plan.batch(step), again.batch(step)
        np.testing.assert_array_equal(batch.indices, other.indices)
        np.testing.assert_array_equal(batch.starts, other.starts)
        np.add.at(used, batch.indices, 1)
        assert (batch.starts >= 0).all()  # no crop reaches beyond its utterance
        assert (batch.starts + batch.num_samples <= every[batch.indices]).all()
    for counts, passes in ((used[:600], 1.0), (used[600:], weight)):
        assert counts.mean() / epochs == pytest.approx(passes, rel=0.03)
        # All take their turn; what fills no batch, as ever, is what is shortest.
        assert np.mean(np.abs(counts - passes * epochs) <= 2) > 0.9
        assert counts.max() <= np.ceil(passes) * epochs
    shares = plan.shares(range(epochs * plan.num_batches))
    a, b = (np.minimum(lengths[name], 48_000).sum() for name in "ab")
    assert shares["b"] == pytest.approx(weight * b / (a + weight * b), abs=0.02)
    assert sum(shares.values()) == pytest.approx(1)


def test_a_weight_too_small_for_one_utterance_still_gives_one():
    lengths = {"a": random_lengths(20, key=1), "b": np.array([20_000, 30_000, 25_000])}
    plan = MixturePlan(lengths, weights={"a": 1.0, "b": 0.01}, seed=7, **PLAN)
    used = {
        int(index)
        for step in range(20 * plan.num_batches)
        for index in plan.batch(step).indices
        if index >= 20
    }
    assert used <= {20, 21, 22} and len(used) > 1


def test_the_shares_are_said_before_the_training(root):
    data = open_mixture(config(root, *BOTH), split="train", seed=5)
    first, en, it = data.plan.summary().split("\n")[:3]
    assert "mixture of 2 sets" in first
    assert "asterisk_en" in en and "weight 1:" in en
    assert "asterisk_it" in it and "weight 2.5:" in it
    shares = [float(line.split("weight")[1].split(": ")[1].split("%")[0]) for line in (en, it)]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    found = data.shares(range(20 * data.plan.num_batches))
    assert 100 * found["asterisk_it"] == pytest.approx(shares[1], abs=8)


@pytest.mark.parametrize(
    ("mixture", "why"),
    [
        ((("a", 0.0),), "weights of more than 0"),
        ((("a", -1.0), ("b", 1.0)), "weights of more than 0"),
        ((("a", float("nan")),), "weights of more than 0"),
        ((("a", float("inf")),), "weights of more than 0"),
        ((("a", True),), "weight"),
        ((("a", "1"),), "weight"),
        ((("a", 1.0), ("b", 1.0), ("a", 2.0)), "no folder twice"),
        (("a", 1.0), "of each"),
        ((("a",),), "of each"),
        ((("", 1.0),), "folder of a prepared dataset"),
        ((("gs://bucket/a", 1.0),), "folder of a prepared dataset"),
        ("a", "expected tuple"),
    ],
)
def test_mixtures_that_no_run_starts_with(mixture, why):
    fields = published_recipe().to_dict()
    fields["data"] |= {"mixture": mixture, "eval_data_dir": "x", "eval_dataset": "audio_folder"}
    with pytest.raises(ValueError, match="config.data.mixture: found ") as message:
        parse(fields)
    assert why in str(message.value)


def test_a_mixture_fits_the_other_fields():
    fields = published_recipe().to_dict()
    fields["data"]["mixture"] = [["a", 1], ["b", 0.5]]
    with pytest.raises(ValueError, match="config.data.eval_data_dir: found '', expected"):
        parse(fields)
    fields["data"]["eval_split"] = ""
    assert parse(fields).data.mixture == (("a", 1), ("b", 0.5))
    fields["task"] = "ctc"
    with pytest.raises(ValueError, match="config.data.mixture: found"):
        parse(fields)


@pytest.mark.parametrize(
    ("mixture", "changed", "message"),
    [
        ((("asterisk_fr", 1.0),), {}, "'asterisk_fr'.*no prepared dataset"),
        ((("asterisk_en", 1.0), ("./asterisk_en", 1.0)), {}, "are both"),
        ((("asterisk_en", 1.0),), {"split": "dev"}, "'asterisk_en'.*split 'dev'"),
        ((("asterisk_en", 1.0),), {"split": "train[:0]"}, "'asterisk_en'.*holds no utterance"),
        ((("asterisk_en", 1.0),), {"batch_multiple": 64}, "40 of 'asterisk_en'|of 'asterisk_en'"),
    ],
)
def test_sets_that_cannot_be_read(root, mixture, changed, message):
    options = dict(changed)
    split = options.pop("split", "train")
    with pytest.raises((ManifestError, PipelineError), match="config.data.mixture") as found:
        open_mixture(config(root, *mixture, **options), split=split, seed=5)
    assert re.search(message, str(found.value), re.DOTALL)


@pytest.mark.parametrize("kind", ["described", "recorded"])
def test_another_sample_rate_is_refused(root, tmp_path, kind):
    shutil.copytree(root / "asterisk_it", tmp_path / "slow")
    path = dataset_folder(tmp_path / "slow") / "features.json"
    if kind == "described":
        path.write_text(path.read_text().replace('"16000"', '"8000"'))
    else:
        (shard,) = path.parent.glob("*.array_record*")
        rewrite_at_8000(shard)
    mixture = (("asterisk_en", 1.0), (str(tmp_path / "slow"), 1.0))
    with pytest.raises(ManifestError, match="config.data.mixture, .*slow.* 8000 samples a second"):
        open_mixture(config(root, *mixture), split="train", seed=5)


def rewrite_at_8000(shard):
    """Gives the records of a file audio whose header says 8000 Hz."""
    reader = array_record_module.ArrayRecordReader(str(shard))
    examples = [tf.train.Example.FromString(some) for some in reader.read_all()]
    reader.close()
    audio = io.BytesIO()
    soundfile.write(audio, np.zeros(64_000, np.int16), 8_000, format="FLAC")
    writer = array_record_module.ArrayRecordWriter(str(shard), "group_size:1")
    for example in examples:
        example.features.feature["speech"].bytes_list.value[0] = audio.getvalue()
        writer.write(example.SerializeToString())
    writer.close()


def run(workdir, root, *flags, expect=0):
    fields = {"data_dir": root, "dataset": "audio_folder", "eval_data_dir": root / "asterisk_it"}
    fields |= {"eval_dataset": "audio_folder", "eval_split": "train", "train_split": "train"}
    given = [f"--config.data.{name}={value}" for name, value in (fields | {"max_rungs": 1}).items()]
    given += [f"--config.{name}" for name in ("log_steps=2", "checkpoint_steps=3", "eval_steps=4")]
    cache = workdir.parent / "compiled"
    return run_main_py(cache, f"--workdir={workdir}", *given, *flags, expect=expect)


def test_a_run_trains_on_a_mixture_and_goes_on_exactly(root, tmp_path):
    mixture = "--config.data.mixture=(('asterisk_en', 1.0), ('asterisk_it', 2.0))"
    output = run(tmp_path / "whole", root, mixture, "--config.num_steps=6")
    assert "mixture of 2 sets" in output
    run(tmp_path / "parts", root, mixture, "--config.num_steps=3")
    run(tmp_path / "parts", root, mixture, "--config.num_steps=6")
    whole, parts = records(tmp_path / "whole"), records(tmp_path / "parts")
    assert [r for r in parts if r["step"] in (4, 6)] == [r for r in whole if r["step"] in (4, 6)]
    last = whole[-1]
    assert last["share/asterisk_en"] + last["share/asterisk_it"] == pytest.approx(1)
    assert 0 < last["share/asterisk_it"] < 1 and "eval_loss" in last
    unknown = "--config.data.mixture=(('asterisk_en', 1.0), ('asterisk_xx', 2.0))"
    message = run(tmp_path / "none", root, unknown, expect=1)
    assert "config.data.mixture, 'asterisk_xx'" in message
    assert not (tmp_path / "none/metrics.jsonl").exists()
