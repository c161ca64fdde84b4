"""The manifest and the records: splits, slices, the cache, and what goes wrong."""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dinosr_jax.data import audio
from dinosr_jax.data import manifest as manifest_module
from dinosr_jax.data.manifest import ManifestError, Records, load_manifest, split_names
from tests.prepared_speech import speech, write_parts


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """40 utterances in train, 5 in test; texts with quotes, tabs are impossible in a table."""
    source = tmp_path_factory.mktemp("source")
    write_parts(source, [0.5 + number / 40 for number in range(45)], step=16_000)
    rows = ["file\ttext\tsplit\tlanguage"]
    for number in range(45):
        rows.append(f'{number:02d}\tsay "{number}, é\t{"test" if number < 5 else "train"}\ten')
    (source / "transcripts.tsv").write_text("\n".join(rows), encoding="utf-8")
    return source


def cache(data_dir: Path, split: str = "train") -> Path:
    return data_dir / "audio_folder/1.0.0" / manifest_module.CACHE_NAME.format(split=split)


def test_what_is_known_about_each_utterance(data_dir):
    manifest = load_manifest(data_dir, split="test")
    assert sorted(manifest.ids) == ["00", "01", "02", "03", "04"]
    for i, id_ in enumerate(manifest.ids):
        assert manifest.num_samples[i] == 8_000 + 400 * int(id_)
        assert manifest.texts[i] == f'say "{int(id_)}, é' and manifest.languages[i] == "en"
    assert manifest.num_samples.dtype == np.int64
    assert split_names(data_dir) == ["test", "train"]


@pytest.mark.parametrize(
    "split", ["train", "test", "train[:95%]", "train[95%:]", "train[3:7]", "test+train[-2:]"]
)
def test_positions_lead_to_the_records(data_dir, split):
    manifest, records = load_manifest(data_dir, split=split), Records(data_dir, split=split)
    assert len(manifest) == len(records)
    for position, id_ in zip(manifest.positions, manifest.ids, strict=True):
        content, record_id = records[position]
        assert record_id == id_ and content[:4] == b"fLaC"


def test_slices_split_the_whole(data_dir):
    parts = [load_manifest(data_dir, split=f"train[{part}]").ids for part in (":95%", "95%:")]
    assert [len(part) for part in parts] == [38, 2]
    assert np.concatenate(parts).tolist() == load_manifest(data_dir, split="train").ids.tolist()
    both = load_manifest(data_dir, split="train+test")
    assert sorted(both.ids) == [f"{n:02d}" for n in range(45)]


def test_filter_keeps_the_way_to_the_records(data_dir):
    manifest, records = load_manifest(data_dir, split="train"), Records(data_dir, split="train")
    long = manifest.at_least(1.2)
    assert len(long) == (manifest.num_samples >= 19_200).sum() < len(manifest)
    assert all(records[p][1] == id_ for p, id_ in zip(long.positions, long.ids, strict=True))
    assert (long.num_samples >= 19_200).all() and long.fingerprint != manifest.fingerprint


def test_fingerprint_follows_ids_lengths_and_order(data_dir):
    manifest = load_manifest(data_dir, split="train")
    again = load_manifest(data_dir, split="train")
    assert manifest.fingerprint == again.fingerprint and len(manifest.fingerprint) == 16
    again.num_samples[0] += 1
    assert load_manifest(data_dir, split="train").fingerprint == manifest.fingerprint
    others = [again.take(slice(None)), manifest.take(np.arange(40)[::-1]), manifest.take([0])]
    assert len({m.fingerprint for m in [manifest, *others]}) == 4


def test_many_threads_read_the_same(data_dir):
    records = Records(data_dir, split="train+test")
    expected = [records[i] for i in range(45)]
    fresh = Records(data_dir, split="train+test")
    order = np.random.Generator(np.random.Philox(key=1)).integers(0, 45, 400)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(fresh.__getitem__, order)) == [expected[i] for i in order]


def test_the_cache_is_used(data_dir, monkeypatch):
    first = load_manifest(data_dir, split="train")
    monkeypatch.setattr(manifest_module, "_scan", None)
    second = load_manifest(data_dir, split="train")
    for name in ("ids", "num_samples", "speakers", "languages", "texts", "positions"):
        assert getattr(first, name).tolist() == getattr(second, name).tolist()
        assert getattr(first, name).dtype == getattr(second, name).dtype


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text[: text.rindex("\n", 0, -1) + 1],  # a whole row is gone
        lambda text: "",
        lambda text: "\0\0\0",
        lambda text: text.replace("train", "x").replace("10400", "many"),
        lambda text: text.replace("\t", " "),
    ],
)
def test_a_damaged_cache_is_made_again(data_dir, damage):
    expected, whole = load_manifest(data_dir, split="train+test"), cache(data_dir).read_bytes()
    cache(data_dir).write_text(damage(whole.decode()))
    again = load_manifest(data_dir, split="train+test")
    assert again.fingerprint == expected.fingerprint
    assert again.texts.tolist() == expected.texts.tolist()
    assert cache(data_dir).read_bytes() == whole


def test_the_cache_of_other_records_is_not_believed(data_dir):
    load_manifest(data_dir, split="test")
    forged = cache(data_dir, "test").read_text().replace("\t8000\t", "\t9999\t")
    cache(data_dir, "test").write_text(forged)
    assert 9999 in load_manifest(data_dir, split="test").num_samples
    (records_file,) = cache(data_dir).parent.glob("*-test.array_record*")
    os.utime(records_file, ns=(5, 5))
    assert 9999 not in load_manifest(data_dir, split="test").num_samples


def test_a_cache_that_cannot_be_written_is_done_without(data_dir, capsys, monkeypatch):
    expected = load_manifest(data_dir, split="test").fingerprint
    cache(data_dir, "test").unlink()
    monkeypatch.setattr(manifest_module, "CACHE_NAME", "no/such/folder.tsv")
    assert load_manifest(data_dir, split="test").fingerprint == expected
    assert "could not be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "split", ["dev", "train[", "train[:5%]+dev", "train[200:]", "train[:0%]", ""]
)
def test_an_unusable_split_names_the_existing_ones(data_dir, split):
    with pytest.raises(ManifestError) as caught:
        load_manifest(data_dir, split=split)
    message = str(caught.value)
    assert repr(split) in message
    assert "['test', 'train']" in message or "holds no utterance" in message


def test_what_was_never_prepared_names_the_command(tmp_path):
    message = "there is no such folder.* prepare --source="
    with pytest.raises(ManifestError, match=message) as caught:
        load_manifest(tmp_path / "gone", split="train")
    assert f"--data_dir={tmp_path / 'gone'}" in str(caught.value)
    (tmp_path / "LibriSpeech").mkdir()
    with pytest.raises(ManifestError, match=r"it holds \['LibriSpeech'\]"):
        Records(tmp_path, split="train")


def write_like_librispeech(folder: Path, *, file_format: str) -> None:
    """A TFDS dataset with the features of librispeech/lazy_decode, which stores no lengths."""
    import tensorflow_datasets as tfds

    class LikeLibrispeech(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("2.1.2")
        code_path = None

        def _info(self):
            how = {"sample_rate": 16_000, "dtype": np.int16, "lazy_decode": True}
            features = {"speech": tfds.features.Audio(**how, file_format="flac")}
            features |= {"text": tfds.features.Text(), "id": np.str_}
            features |= {"speaker_id": np.int64, "chapter_id": np.int64}
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"dev_clean": self._generate_examples()}

        def _generate_examples(self):
            for number in range(3):
                content = io.BytesIO(audio.encode_flac(speech(8_000 + number)))
                fields = {"speaker_id": 19, "chapter_id": 198, "id": f"19-198-{number}"}
                yield number, {"speech": content, "text": "HELLO", **fields}

    LikeLibrispeech(data_dir=folder, file_format=file_format).download_and_prepare()


def test_datasets_of_tfds_can_be_read(tmp_path):
    write_like_librispeech(tmp_path, file_format="array_record")
    where = {"dataset": "like_librispeech", "split": "dev_clean"}
    manifest = load_manifest(tmp_path, **where)
    lengths = dict(zip(manifest.ids, manifest.num_samples, strict=True))
    assert lengths == {"19-198-0": 8_000, "19-198-1": 8_001, "19-198-2": 8_002}
    assert set(manifest.speakers) == {"19"} and set(manifest.languages) == {""}
    assert Records(tmp_path, **where)[2][1] == manifest.ids[2]


def test_other_formats_than_array_record_are_refused(tmp_path):
    write_like_librispeech(tmp_path, file_format="tfrecord")
    with pytest.raises(ManifestError, match="tfrecord files, expected array_record"):
        load_manifest(tmp_path, dataset="like_librispeech", split="dev_clean")
