"""MFCC: as many as the network has frames, at the same times, whatever the convolutions."""

import numpy as np
import pytest

from configs import tiny
from dinosr_jax.evaluation.features import mfcc_deltas
from dinosr_jax.model.feature_encoder import num_frames, receptive_field

PUBLISHED = tiny.get_config().model.conv_layers
SHORT = ((8, 10, 5), (8, 4, 4), (8, 2, 2))  # receptive field 45, less than the window; hop 40
LONG = (*PUBLISHED, (8, 5, 2))  # receptive field 1680, hop 640


def speech(samples, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(samples) * np.linspace(0.1, 1, samples)).astype(np.float32)


@pytest.mark.parametrize("conv_layers", [PUBLISHED, SHORT, LONG])
@pytest.mark.parametrize("more", [0, 1, 5_003])
def test_one_for_every_frame_of_the_network(conv_layers, more):
    samples = receptive_field(conv_layers)[0] + more
    found = mfcc_deltas.mfcc(speech(samples), conv_layers=conv_layers)
    assert found.shape == (num_frames(samples, conv_layers), 39) and found.dtype == np.float32
    assert np.isfinite(found).all()


def test_normalised_over_the_utterance_at_any_level():
    wave = speech(30_000)
    found = mfcc_deltas.mfcc(wave, conv_layers=PUBLISHED)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(found.std(0), 1, atol=1e-2)
    louder = mfcc_deltas.mfcc(100 * wave, conv_layers=PUBLISHED)
    np.testing.assert_allclose(louder, found, atol=5e-2)


def test_normalised_with_given_statistics():
    """So that the mean of an utterance says something."""
    waves = [speech(30_000, seed=1), np.sin(np.arange(30_000) * 0.3).astype(np.float32)]
    raw = mfcc_deltas.MfccStatistics(np.zeros(39), np.ones(39))
    found = [mfcc_deltas.mfcc(wave, conv_layers=PUBLISHED, statistics=raw) for wave in waves]
    both = np.concatenate(found)
    of_both = mfcc_deltas.MfccStatistics(both.mean(0), both.std(0))
    normal = [mfcc_deltas.mfcc(wave, conv_layers=PUBLISHED, statistics=of_both) for wave in waves]
    expected = (both - both.mean(0)) / (both.std(0) + 1e-5)
    np.testing.assert_allclose(np.concatenate(normal), expected, atol=1e-3)
    assert np.abs(normal[0].mean(0) - normal[1].mean(0)).max() > 1


@pytest.mark.parametrize("conv_layers", [PUBLISHED, SHORT, LONG])
def test_a_click_is_in_the_frames_around_it(conv_layers):
    """The loudest frames are those whose 25 ms, around the network's frame, hold the click."""
    field, hop = receptive_field(conv_layers)
    at = 8_000
    wave = 1e-3 * speech(16_000)
    wave[at] = 1.0
    energy = mfcc_deltas.mfcc(wave, conv_layers=conv_layers)[:, 0]
    centres = field // 2 + hop * np.arange(len(energy))
    inside = np.abs(centres - at) < 150
    assert inside.any() and energy[inside].min() > energy[np.abs(centres - at) > 205].max()


def test_differences_follow_the_coefficients():
    found = mfcc_deltas.mfcc(speech(40_000), conv_layers=PUBLISHED)
    slope = lambda x: sum(k * (x[4 + k : len(x) - 4 + k]) for k in range(-4, 5))
    corner = lambda a, b: np.corrcoef(a, b)[0, 1]
    for i in range(13):
        assert corner(slope(found[:, i]), found[4:-4, 13 + i]) > 0.999
    assert np.abs(corner(found[:, 0], found[:, 26])) < 0.95
