"""Transcribed speech in padded batches, on real prompts."""

import types
from pathlib import Path

import numpy as np
import pytest
import soundfile

from dinosr_jax.data import audio
from dinosr_jax.data.batches.pipeline import PipelineError
from dinosr_jax.data.batches.transcribed import (
    find_vocabulary,
    open_transcribed,
    transcripts_of_split,
)
from dinosr_jax.data.vocabulary import VocabularyError, letters
from tests.prepared_speech import data_config

ROOT = Path(__file__).parents[3]
SECONDS = [1.0, 1.5, 2.0, 2.5, 3.0, 1.0, 0.02, 1.2]  # what has no frame is not prepared
TEXTS = ["One.", "two TWO", "it’s three", "", "5 four", "A" * 60, "SHORT", "seven"]
LANGUAGES = ["en", "en", "en", "en", "en", "fr", "fr", "fr"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    waveform = soundfile.read(ROOT / "data/embedded/asterisk_en.ogg", frames=30 * 16_000)[0]
    rows = ["file\ttext\tspeaker\tlanguage\tsplit"]
    for number, (seconds, text) in enumerate(zip(SECONDS, TEXTS, strict=True)):
        part = waveform[number * 48_000 :][: int(seconds * 16_000)]
        soundfile.write(folder / f"{number}.flac", part, 16_000)
        rows.append(f"{number}.flac\t{text}\tallison\t{LANGUAGES[number]}\ttrain")
    (folder / "transcripts.tsv").write_text("\n".join(rows) + "\n")
    phones = ["file\tstart_s\tend_s\tphone", "0\t0\t0.1\tSIL", "0\t0.1\t0.3\tW", "0\t0.3\t0.5\tAH"]
    (folder / "phones.tsv").write_text("\n".join([*phones, "1\t0\t1\tT"]) + "\n")
    return folder


def config_of(data_dir, **changes):
    fields = {"min_seconds": 0.1, "max_seconds": 2.6, "max_batch_seconds": 32.0, "max_rungs": 2}
    fields |= {"batch_multiple": 2, "alignment": "", "train_split": "train"}
    data = data_config(data_dir, **fields)
    ctc = types.SimpleNamespace(vocabulary="letters", lexicon="", language="")
    for name, value in changes.items():
        setattr(ctc if hasattr(ctc, name) else data, name, value)
    return data, ctc


def opened(data_dir, *, use="training", vocabulary=None, kind="letters", **changes):
    data, ctc = config_of(data_dir, vocabulary=kind, **changes)
    how = {"vocabulary": vocabulary or letters(), "field": 400, "hop": 320, "seed": 0}
    return open_transcribed(data, ctc, split="train", use=use, **how)


def batches_of(found, *, share=(0, 1, 1)):
    return list(found.batches(0, found.batches_per_epoch, share=share))


def test_what_cannot_be_learnt_is_left_out_and_counted(data_dir):
    found = opened(data_dir)
    assert found.left_out == {
        "no transcript": 1,
        "longer than max_seconds = 2.6": 1,
        "with a transcript longer than its frames": 1,
    }
    strict = opened(data_dir, max_seconds=3.5, min_seconds=1.1).left_out
    assert strict["with characters or phones that are not in the vocabulary"] == 1
    assert strict["shorter than min_seconds = 1.1"] == 2
    used = {id_ for batch in batches_of(found) for id_ in batch.ids if id_}
    assert used == {"0", "1", "2", "7"}
    assert "left out: no transcript" in found.summary()


def test_nothing_with_a_transcript_is_left_out_of_what_is_held_out(data_dir):
    found = opened(data_dir, use="held out")
    used = {id_ for batch in batches_of(found) for id_ in batch.ids if id_}
    assert used == {"0", "1", "2", "4", "5", "7"} and found.references["4"] == "5 FOUR"
    assert found.left_out["no transcript"] == 1
    assert any(3 in batch.labels for batch in batches_of(found))  # <unk>


def test_batches_hold_whole_normalised_utterances_and_their_labels(source, data_dir):
    found = opened(data_dir)
    assert sum(found.samples(k) for k in range(found.batches_per_epoch)) == round(5.7 * 16_000)
    for batch in batches_of(found):
        size, samples = batch.waveforms.shape
        assert set(batch.arrays) == {"waveforms", "num_samples", "labels", "num_labels"}
        assert size % 2 == 0 and batch.labels.shape[1] % 8 == 0
        for row, id_ in enumerate(batch.ids):
            wave, number = batch.waveforms[row], batch.num_samples[row]
            labels = batch.labels[row, : batch.num_labels[row]]
            assert not wave[number:].any() and not batch.labels[row, batch.num_labels[row] :].any()
            if not id_:
                assert number == samples and len(labels) == 0 and not wave.any()
                continue
            whole = soundfile.read(source / f"{id_}.flac", dtype="float32")[0]
            np.testing.assert_allclose(wave[:number], audio.normalise(whole), atol=1e-6)
            assert letters().decode(labels) == letters().normalise(TEXTS[int(id_)])


def test_hosts_read_the_rows_of_one_batch(data_dir):
    found = opened(data_dir)
    whole = batches_of(found)
    parts = [batches_of(found, share=(k, k + 1, 2)) for k in range(2)]
    for one, *halves in zip(whole, *parts, strict=True):
        for name, array in one.arrays.items():
            joined = np.concatenate([half.arrays[name] for half in halves])
            np.testing.assert_array_equal(joined, array)
        assert [id_ for half in halves for id_ in half.ids] == one.ids


def test_a_run_that_starts_late_sees_the_same(data_dir):
    found = opened(data_dir)
    number = 3 * found.batches_per_epoch
    first = list(found.batches(0, number, share=(0, 1, 1)))
    late = list(found.batches(2, number - 2, share=(0, 1, 1)))
    for a, b in zip(first[2:], late, strict=True):
        assert a.ids == b.ids and a.step == b.step
        np.testing.assert_array_equal(a.waveforms, b.waveforms)


def test_fingerprint_is_of_the_labels_too(data_dir):
    data, ctc = config_of(data_dir, vocabulary="characters")
    other = opened(data_dir, vocabulary=find_vocabulary(data, ctc))
    assert other.fingerprint != opened(data_dir).fingerprint == opened(data_dir).fingerprint


def test_characters_and_language(data_dir):
    data, ctc = config_of(data_dir, vocabulary="characters", language="fr")
    assert set(find_vocabulary(data, ctc).symbols[5:]) == set("aseven")
    manifest, _ = transcripts_of_split(data, ctc, split="train")
    assert set(manifest.languages) == {"fr"}
    ctc.language = "de"
    with pytest.raises(VocabularyError, match="'de'.*en, fr"):
        transcripts_of_split(data, ctc, split="train")


def test_phones_of_an_alignment_and_of_a_lexicon(data_dir, tmp_path):
    data, ctc = config_of(data_dir, vocabulary="phones")
    _, texts = transcripts_of_split(data, ctc, split="train")
    assert texts == {"0": "W AH", "1": "T"}
    assert find_vocabulary(data, ctc).symbols[4:] == ("AH", "T", "W")
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("ONE  W AH1 N\nTWO  T UW1\nTWO  T AH0\n")
    ctc.lexicon = str(lexicon)
    _, texts = transcripts_of_split(data, ctc, split="train")
    assert texts["0"] == "W AH N" and texts["1"] == "T UW T UW" and "<SEVEN>" in texts["7"]
    how = {"vocabulary": find_vocabulary(data, ctc), "kind": "phones", "lexicon": str(lexicon)}
    found = opened(data_dir, **how)
    used = {id_ for batch in batches_of(found) for id_ in batch.ids if id_}
    assert used == {"0", "1"}  # the others have words that the lexicon has not


def test_nothing_left_is_an_error(data_dir):
    with pytest.raises(PipelineError, match="no utterance is left.*left out: no transcript"):
        opened(data_dir, max_seconds=0.11, min_seconds=0.1)
    with pytest.raises(PipelineError, match="max_batch_seconds = 2"):
        opened(data_dir, max_batch_seconds=2.0)
