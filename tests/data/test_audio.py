"""Decoding and checking of single files, on real speech and on hostile bytes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dinosr_jax.data import audio
from tests import odd_recordings
from tests.odd_recordings import encoded


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return odd_recordings.speech(48_000)


LOSSLESS = [("FLAC", {}), ("WAV", {}), ("AIFF", {}), ("W64", {}), ("CAF", {}), ("AU", {})]
LOSSY = [("OGG", {}), ("OGG", {"subtype": "OPUS"}), ("MP3", {})]


@pytest.mark.parametrize(("kind", "options"), LOSSLESS)
def test_lossless_formats_decode_exactly(speech, kind, options):
    decoded = audio.decode(encoded(speech, kind=kind, **options), name="x")
    assert decoded.waveform.dtype == np.float32
    assert (decoded.sample_rate, decoded.num_channels) == (16_000, 1)
    np.testing.assert_array_equal(decoded.waveform * 32768, speech)


@pytest.mark.parametrize(("kind", "options"), LOSSY)
def test_lossy_formats_decode_to_the_same_speech(speech, kind, options):
    waveform = audio.load(encoded(speech, kind=kind, **options), name="x")
    assert abs(len(waveform) - len(speech)) < 2000
    common = min(len(waveform), len(speech))
    assert np.corrcoef(waveform[:common], speech[:common])[0, 1] > 0.9


@pytest.mark.parametrize(("kind", "options"), LOSSLESS + LOSSY)
@pytest.mark.parametrize("part", [0.98, 0.9, 0.5, 0.05])
def test_truncation_is_found_in_every_format(speech, kind, options, part):
    content = encoded(speech, kind=kind, **options)
    with pytest.raises(audio.AudioError, match=r"a\.wav: .*truncated"):
        audio.decode(content[: int(len(content) * part)], name="a.wav")


def nan_at(samples: np.ndarray, value: float) -> np.ndarray:
    samples = samples.astype(np.float32) / 32768
    samples[7] = value
    return samples


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x: b"", "empty"),
        (lambda x: b"this is a letter, not a recording\n" * 50, "not audio"),
        (lambda x: encoded(x[:0], kind="WAV"), "no samples"),
        (lambda x: encoded(np.zeros(16_000, np.int16), kind="FLAC"), "silent"),
        (lambda x: encoded(np.full(16_000, 7, np.int16), kind="FLAC"), "silent"),
        (lambda x: encoded(np.stack([x, -x], 1), kind="FLAC"), "silent"),
        (lambda x: encoded(nan_at(x, np.nan), kind="WAV", subtype="FLOAT"), "1 of 48000 .*NaN"),
        (lambda x: encoded(nan_at(x, np.inf), kind="WAV", subtype="FLOAT"), "1 of 48000 .*infin"),
    ],
)
def test_what_cannot_be_learned_from_is_refused_by_name(speech, make, message):
    with pytest.raises(audio.AudioError, match=rf"^some/file\.wav: .*{message}"):
        audio.load(make(speech), name="some/file.wav")


def test_a_flipped_byte_inside_flac_is_found(speech):
    content = bytearray(encoded(speech, kind="FLAC"))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(audio.AudioError, match="corrupt"):
        audio.decode(bytes(content), name="x")


def test_a_missing_file_is_an_audio_error(tmp_path):
    with pytest.raises(audio.AudioError, match="gone.wav: cannot be read"):
        audio.decode(tmp_path / "gone.wav", name="gone.wav")


def test_stereo_is_mixed_down(speech):
    stereo = np.stack([speech, speech // 2], axis=1)
    decoded = audio.decode(encoded(stereo, kind="FLAC"), name="x")
    assert decoded.num_channels == 2
    np.testing.assert_allclose(decoded.waveform, stereo.mean(1) / 32768, atol=1e-6)


@pytest.mark.parametrize("sample_rate", [8_000, 22_050, 44_100, 48_000])
def test_resampling_keeps_a_tone(sample_rate):
    times = np.arange(sample_rate) / sample_rate
    tone = np.sin(2 * np.pi * 440 * times).astype(np.float32)
    resampled = audio.to_16khz(tone, sample_rate=sample_rate)
    assert resampled.dtype == np.float32 and len(resampled) == 16_000
    expected = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(resampled[500:-500], expected[500:-500], atol=1e-3)


def test_normalise_is_layer_norm_over_the_waveform(speech):
    x = speech.astype(np.float64) / 32768
    expected = (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + 1e-5)
    normalised = audio.normalise((speech / 32768).astype(np.float32))
    assert normalised.dtype == np.float32
    np.testing.assert_allclose(normalised, expected, atol=1e-6)
    quiet = audio.normalise((speech / 32768 * 1e-3).astype(np.float32))
    assert quiet.std() < 0.1  # the epsilon stands under the root, as in fairseq


def test_normalise_crops_after_the_statistics_of_the_whole(speech):
    whole = audio.normalise(speech)
    from_floats = audio.normalise((speech / 32768).astype(np.float32))
    np.testing.assert_allclose(whole, from_floats, atol=1e-5)
    row = np.full(2_000, np.nan, np.float32)
    assert audio.normalise(speech, crop=slice(3_000, 5_000), out=row) is row
    np.testing.assert_array_equal(row, whole[3_000:5_000])


def test_16_bit_files_are_decoded_to_their_samples(speech):
    for content in (audio.encode_flac(speech), audio.encode_pcm16(speech)):
        samples, sample_rate = audio.decode_samples(content, name="x")
        assert samples.dtype == np.int16 and sample_rate == 16_000
        np.testing.assert_array_equal(samples, speech)
        with pytest.raises(audio.AudioError, match="truncated"):
            audio.decode_samples(content[: len(content) // 2], name="x")


def test_flac_is_lossless_for_int16_and_rounds_floats(speech):
    np.testing.assert_array_equal(audio.load(audio.encode_flac(speech), name="x") * 32768, speech)
    loud = np.array([0.5, -1.0, 1.5, -1.5, 0.3 / 32768], np.float32)
    decoded = audio.load(audio.encode_flac(loud), name="x") * 32768
    np.testing.assert_array_equal(decoded, [16384, -32768, 32767, -32768, 0])


def test_module_imports_without_audio_libraries():
    code = "import sys; sys.modules['soundfile'] = sys.modules['librosa'] = None\n"
    code += "from dinosr_jax.data import audio\nfrom dinosr_jax.data.batches import crops\n"
    code += "assert audio.SAMPLE_RATE == crops.SAMPLE_RATE == 16000\n"
    code += "assert 'tensorflow' not in sys.modules"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
