"""Long recordings, decoded a block at a time."""

import numpy as np
import pytest
import soundfile

from dinosr_jax.data import audio
from dinosr_jax.inference.forward import long_audio
from dinosr_jax.inference.recordings import open_inputs
from tests.odd_recordings import encoded, flac_claims, speech, unfinished


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_blocks_are_the_whole_file(tmp_path, rate):
    wave = np.random.default_rng(0).standard_normal((rate * 65 + 17, 2)) / 10 + 0.1
    soundfile.write(tmp_path / "x.flac", wave, rate)
    (recording,) = open_inputs(tmp_path)
    whole = recording.load()
    blocks = list(long_audio.blocks(recording))
    assert len(blocks) >= 2
    joined = np.concatenate(blocks)
    assert len(joined) == len(whole) == long_audio.read_header(recording).num_samples
    np.testing.assert_allclose(joined, whole, atol=1e-6)
    found = long_audio.scan(recording)
    assert found.num_samples == len(whole)
    expected = audio.normalise(whole)
    np.testing.assert_allclose((joined - found.mean) * found.factor, expected, atol=1e-5)


ODD = unfinished() | {
    "gsm": (".wav", encoded(speech(), "WAV", "GSM610", 8_000)),
    "missing": (".wav", encoded(speech(), "WAV")[:-16]),
    "flac missing": (".flac", flac_claims(encoded(speech(), "FLAC"), 24_100)),
}


@pytest.mark.parametrize("kind", ODD)
def test_blocks_are_the_whole_file_whatever_its_header_says(kind, tmp_path, monkeypatch):
    extension, content = ODD[kind]
    (tmp_path / f"x{extension}").write_bytes(content)
    monkeypatch.setattr(long_audio, "_BLOCK_SECONDS", 1)
    (recording,) = open_inputs(tmp_path)
    told = {"whole": [], "blocks": []}
    whole = recording.load(on_missing=told["whole"].append)
    blocks = list(long_audio.blocks(recording, on_missing=told["blocks"].append))
    assert len(blocks) >= 2 and told["blocks"] == told["whole"]
    assert len(told["whole"]) == ("missing" in kind)
    claimed = long_audio.read_header(recording).num_samples
    assert claimed == 24_100 if kind == "flac missing" else claimed == len(whole)
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encoded(np.stack([speech(), -speech()], 1), "FLAC"), "channels cancel"),
        (encoded(speech(), "WAV")[:-9_000], "truncated"),
        (flac_claims(encoded(speech(), "FLAC"), 0)[:-3_000], "truncated"),
        (encoded(speech()[:0], "WAV"), "no samples"),
    ],
    ids=["antiphase", "cut", "cut without length", "empty"],
)
def test_blocks_are_refused_as_the_whole_is(content, message, tmp_path):
    (tmp_path / "x.wav").write_bytes(content)
    (recording,) = open_inputs(tmp_path)
    found = []
    for read in (recording.load, lambda: long_audio.scan(recording)):
        with pytest.raises(audio.AudioError, match=message) as error:
            read()
        found.append(str(error.value))
    assert found[0] == found[1] and "x.wav: " in found[0]
