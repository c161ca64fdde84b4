"""Headers without length, with a wrong one, and whatever else decoders meet; real files."""

import io

import numpy as np
import pytest
import soundfile

from dinosr_jax.data import audio, decoder
from tests.odd_recordings import (
    encoded,
    flac_claims,
    mp3_without_length,
    patched,
    speech,
    unfinished,
    wav_sizes,
)

UNFINISHED = unfinished()


@pytest.mark.parametrize("kind", UNFINISHED)
def test_headers_that_were_never_finished_are_read_to_the_end(kind, tmp_path):
    extension, content = UNFINISHED[kind]
    path = tmp_path / f"x{extension}"
    path.write_bytes(content)
    for source in (content, path):
        found = audio.decode(source, name="x")
        assert not found.has_true_header and not found.missing
        if "gsm" in kind:
            whole = encoded(speech(), "WAV", "GSM610", 8_000)
            assert len(found.waveform) == 24_320 and found.sample_rate == 8_000
            np.testing.assert_array_equal(found.waveform, audio.decode(whole, name="x").waveform)
        elif kind == "mp3":
            assert 24_000 <= len(found.waveform) < 24_000 + 3 * 1152
            rms = lambda wave: np.sqrt(np.square(wave).mean())
            assert rms(found.waveform) == pytest.approx(rms(speech() / 32768), rel=0.1)
        else:
            np.testing.assert_array_equal(found.waveform * 32768, speech())


def test_an_mp3_without_length_is_not_cut_at_an_estimate():
    """Of a variable bit rate, the first frames mislead: libsndfile returns 0.9 s of the 27 s."""
    loud = np.random.default_rng(0).integers(-20_000, 20_000, 16_000, np.int16)
    quiet = np.full(16_000 * 26, 1, np.int16)
    for samples in (np.concatenate([loud, quiet]), np.concatenate([quiet, loud])):
        content = mp3_without_length(samples)
        assert abs(len(soundfile.read(io.BytesIO(content))[0]) - len(samples)) > 16_000
        for tags in (b"", b"ID3\x04\0\0\0\0\x08\x01" + bytes(1025)):
            assert abs(len(audio.load(tags + content, name="x")) - len(samples)) < 3 * 1152
        cut = audio.load(content[: -len(content) // 10 + 7], name="x")  # inside a frame
        assert len(samples) * 0.5 < len(cut) < len(samples)
    with pytest.raises(audio.AudioError, match="^x: .*corrupt"):
        audio.load(content[: len(content) // 2] + bytes(9000) + content[-9000:], name="x")


def test_an_empty_recording_is_not_made_of_what_follows_it():
    wav = encoded(speech()[:0], "WAV")
    assert wav.endswith(b"data\0\0\0\0")
    for rest in (b"", b"LIST\x1a\0\0\0INFOISFT\x0e\0\0\0Lavf59.27.100\0", b"id3 \2\0\0\0ab"):
        message = "^x: .* of [0-9]+ bytes, holds no samples"
        with pytest.raises(audio.AudioError, match=message) as error:
            audio.decode(wav + rest, name="x")
        assert "elete" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "missing"),
    [
        (lambda x: encoded(x, "WAV")[:-16], 8),
        (lambda x: encoded(x, "WAV")[:-2], 1),
        (lambda x: encoded(x, "AIFF")[:-44], 22),
        (lambda x: encoded(np.stack([x, x // 3], 1), "WAV")[:-2048], 512),
        (lambda x: encoded(x, "WAV", "FLOAT")[:-512], 128),
        (lambda x: flac_claims(encoded(x, "FLAC"), 24_100), 100),
        (lambda x: encoded(x, "MP3")[:-60], 721),
    ],
    ids=["wav", "one sample", "aiff", "stereo", "float", "flac", "mp3"],
)
def test_a_few_samples_that_are_missing_are_counted(make, missing):
    found = audio.decode(make(speech()), name="x")
    assert found.missing == missing or (missing == 721 and 0 < found.missing < 800)
    claimed = 24_100 if missing == 100 else 24_000
    assert abs(len(found.waveform) + found.missing - claimed) <= 1
    told = []
    audio.load(make(speech()), name="x", on_missing=told.append)
    assert told == [found.missing / 16_000]


@pytest.mark.parametrize(
    "make",
    [
        lambda x: encoded(x, "WAV")[:-1700],
        lambda x: wav_sizes(encoded(x, "WAV"), riff=60_000, data=60_000),
        lambda x: encoded(x, "AIFF")[:-20_000],
        lambda x: flac_claims(encoded(x, "FLAC"), 25_000),
        lambda x: flac_claims(encoded(x, "FLAC"), 2**36 - 1),
    ],
    ids=["wav", "wav sizes", "aiff", "flac", "absurd flac"],
)
def test_a_larger_part_that_is_missing_is_refused(make):
    with pytest.raises(audio.AudioError, match="^x: .*truncated .* of .* samples"):
        audio.decode(make(speech()), name="x")


def test_flac_without_length_that_is_cut_is_refused():
    content = flac_claims(encoded(speech(), "FLAC"), 0)
    with pytest.raises(audio.AudioError, match="^x: .*truncated"):
        audio.decode(content[:-3000], name="x")


@pytest.mark.parametrize("rate", [1, 100, 2**31 - 1])
def test_absurd_rates_are_refused(rate):
    content = patched(encoded(speech(), "WAV"), 24, rate.to_bytes(4, "little"))
    with pytest.raises(audio.AudioError, match=f"^x: its header says {rate} Hz"):
        audio.decode(content, name="x")


@pytest.mark.parametrize(
    "error",
    [ValueError, RuntimeError, MemoryError, OSError, SystemError, TypeError, ZeroDivisionError],
)
@pytest.mark.parametrize("where", ["read", "resample"])
def test_whatever_a_decoder_raises_is_an_audio_error(error, where, monkeypatch):
    import librosa

    def fail(*args, **kwargs):
        raise error("odd")

    content = encoded(speech(), "WAV", rate=8_000)
    place = (soundfile.SoundFile, "read") if where == "read" else (librosa, "resample")
    monkeypatch.setattr(*place, fail)
    with pytest.raises(audio.AudioError, match="^some/x.wav: .*odd"):
        audio.load(content, name="some/x.wav")


def test_a_library_that_is_missing_is_not_blamed_on_a_file():
    with pytest.raises(ImportError), decoder.explained("x"):
        raise ModuleNotFoundError("soxr")


NOISE = np.random.default_rng(0).standard_normal((24_000, 8)) * 300


@pytest.mark.parametrize(
    ("channels", "cancel"),
    [
        (lambda x: [x, -x], True),
        (lambda x: [x, -x - 1], True),
        (lambda x: [x, -0.9 * x], True),
        (lambda x: [x, -x + NOISE[:, 0] / 10], True),
        (lambda x: [x + 1000, -x + 1000], True),
        (lambda x: [x, -x / 2, -x / 2], True),
        (lambda x: [x, -x, x // 2, -x // 2], True),
        (lambda x: [x, x], False),
        (lambda x: [x, 0 * x], False),
        (lambda x: [x, -0.5 * x], False),
        (lambda x: [NOISE[:, 0], NOISE[:, 1]], False),
        (lambda x: list(NOISE.T), False),
        (lambda x: [x, *[0 * x] * 7], False),
    ],
    ids=[
        *"inverted one-bit weaker noise offset three two-pairs equal one-sided partly".split(),
        *"unlike eight-unlike one-of-eight".split(),
    ],
)
def test_channels_that_cancel_are_refused(channels, cancel):
    samples = np.stack(channels(speech().astype(np.float64)), axis=1).astype(np.int16)
    content = encoded(samples, "WAV")
    if cancel:
        with pytest.raises(audio.AudioError, match="^x: its . channels cancel each other"):
            audio.decode(content, name="x")
    else:
        found = audio.decode(content, name="x").waveform
        np.testing.assert_allclose(found, samples.mean(1) / 32768, atol=1e-7)
