"""Speech Commands as TFDS prepares it, in both formats of files."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from dinosr_jax.data import speech_commands
from dinosr_jax.evaluation.superb.keywords import read_keywords

LABELS = ["down", "go", "left", "no", "off", "on", "right", "stop", "up", "yes"]
LABELS += ["_silence_", "_unknown_"]


class SpeechCommands(tfds.core.GeneratorBasedBuilder):
    """As TFDS' own has its features, with few clips."""

    VERSION = tfds.core.Version("0.0.3")
    code_path = None

    def _info(self):
        audio = tfds.features.Audio(file_format="wav", sample_rate=16_000, dtype=np.int16)
        label = tfds.features.ClassLabel(names=LABELS)
        features = tfds.features.FeaturesDict({"audio": audio, "label": label})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        sizes = {"train": 7, "validation": 3, "test": 2}
        return {split: self._generate_examples(split, n) for split, n in sizes.items()}

    def _generate_examples(self, split, number):
        for i in range(number):
            yield i, {"audio": clip(split, i), "label": LABELS[5 * i % 12]}


def clip(split, i):
    return np.random.default_rng([len(split), i]).integers(-999, 999, 9000 + i).astype(np.int16)


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_clips_are_those_that_were_prepared(tmp_path, file_format):
    from dinosr_jax.data.prepare.audio_folder import build_quietly

    build_quietly(SpeechCommands(data_dir=tmp_path, file_format=file_format))
    folder = speech_commands.prepared_folder(tmp_path)
    assert folder == tmp_path / "speech_commands" / "0.0.3"
    assert speech_commands.prepared_folder(folder) == folder
    clips = list(speech_commands.read_clips(folder, split="train"))
    assert sorted(c.label for c in clips) == sorted(LABELS[5 * i % 12] for i in range(7))
    of_length = {len(c.samples): c for c in clips}
    for i in range(7):
        found = of_length[9000 + i]
        assert found.samples.dtype == np.int16 and found.label == LABELS[5 * i % 12]
        np.testing.assert_array_equal(found.samples, clip("train", i))
    found = read_keywords(tmp_path)
    assert [len(part) for part in found[:3]] == [7, 3, 2]
    example = found.test[0]
    samples = example.recording.load()
    expected = clip("test", len(samples) - 9000) / 32768
    np.testing.assert_allclose(samples, expected, atol=1e-7)
    with pytest.raises(ValueError, match="expected 'speech_commands'"):
        next(speech_commands.read_clips(folder, split="dev"))


def test_nothing_prepared(tmp_path):
    assert speech_commands.prepared_folder(tmp_path) is None
