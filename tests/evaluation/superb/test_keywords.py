"""Speech Commands: lists, silence, unknown words, the test set, and what is damaged."""

import collections
import unicodedata

import pytest

from dinosr_jax.evaluation.superb.keywords import read_keywords
from dinosr_jax.evaluation.utterances import LabelError
from tests.spoken_corpora import write_keywords


@pytest.fixture
def corpus(tmp_path):
    return write_keywords(tmp_path, each=5)


def classes(part):
    return collections.Counter(example.label[0] for example in part)


def test_the_published_folders(corpus, tmp_path):
    root, test = corpus
    found = read_keywords(root)  # finds the test set beside it
    for other in (read_keywords(tmp_path), read_keywords(root, test_folder=test)):
        same = zip(found.everyone(), other.everyone(), strict=True)
        assert all((a.recording.id, a.label) == (b.recording.id, b.label) for a, b in same)
    # 5 of each word, 3 for validation, 1 for the test; noise of 3 and 2 s, every half second
    assert classes(found.train) == {"no": 1, "stop": 1, "_unknown_": 2, "_silence_": 5}
    assert classes(found.valid) == {"no": 3, "stop": 3, "_unknown_": 6, "_silence_": 3}
    assert classes(found.test) == {"no": 4, "stop": 4, "_unknown_": 8, "_silence_": 4}
    assert found.left_out == ()
    silence = [e.recording for e in found.train if e.label == ("_silence_",)]
    lengths = {len(recording.load()) for recording in silence}
    assert lengths == {16_000} and len({e.recording.id for e in found.everyone()}) == 44
    ids = {e.recording.id for e in found.valid if e.label != ("_silence_",)}
    assert ids == set((root / "validation_list.txt").read_text().split())


def test_without_the_test_set(corpus, tmp_path):
    root, test = corpus
    test.rename(tmp_path / "elsewhere")
    found = read_keywords(root)
    assert classes(found.test) == {"no": 1, "stop": 1, "_unknown_": 2}
    assert "which has no silence" in found.data


def test_what_is_damaged_is_counted(corpus):
    root, _ = corpus
    (root / "yes").mkdir()
    with open(root / "validation_list.txt", "a") as file:
        file.write("yes/gone_nohash_0.wav\nno/00_nohash_0.wav\n")  # and one twice
    (root / "_background_noise_" / "bad.wav").write_bytes(b"RIFF")
    found = read_keywords(root)
    names = [name.removeprefix(f"{root}/") for name, _ in found.left_out]
    assert names == ["yes", "yes/gone_nohash_0.wav", "_background_noise_/bad.wav"]
    assert len(found.valid) == 12 + 3


def test_lists_of_something_else(corpus):
    root, _ = corpus
    (root / "testing_list.txt").write_text("a.wav\nb.wav\n")
    with pytest.raises(LabelError, match=r"none of its 2 files, such as 'a.wav'"):
        read_keywords(root)


def test_another_folder(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(LabelError, match=r"found \['x'\], expected Speech Commands"):
        read_keywords(tmp_path)


def test_names_with_accents_joined_and_apart_are_the_same(corpus):
    root, _ = corpus
    apart, name = unicodedata.normalize("NFD", "é"), "00_nohash_9.wav"
    (root / apart).mkdir()
    (root / "no/00_nohash_0.wav").rename(root / apart / name)
    with open(root / "validation_list.txt", "a", encoding="utf-8") as file:
        file.write(f"é/{name}\r\n")
    found = read_keywords(root)
    assert f"{apart}/{name}" in {example.recording.id for example in found.valid}
