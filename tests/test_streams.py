"""Long recordings, decoded a block at a time."""

import numpy as np
import pytest
import soundfile

from dinosr_jax.data import audio
from dinosr_jax.inference import streams
from dinosr_jax.inference.inputs import open_inputs


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_blocks_are_the_whole_file(tmp_path, rate):
    wave = np.random.default_rng(0).standard_normal((rate * 65 + 17, 2)) / 10 + 0.1
    soundfile.write(tmp_path / "x.flac", wave, rate)
    (recording,) = open_inputs(tmp_path)
    whole = recording.load()
    blocks = list(streams.blocks(recording))
    assert len(blocks) >= 2
    joined = np.concatenate(blocks)
    assert len(joined) == len(whole) == streams.read_header(recording).num_samples
    np.testing.assert_allclose(joined, whole, atol=1e-6)
    found = streams.scan(recording)
    assert found.num_samples == len(whole)
    expected = audio.normalise(whole)
    np.testing.assert_allclose((joined - found.mean) * found.factor, expected, atol=1e-5)
