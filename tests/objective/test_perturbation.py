"""The student's other voice: formants and channel move, harmonics and times stay."""

import functools

import jax
import numpy as np
import scipy.signal

from dinosr_jax.objective.perturbation import perturb

RATE = 16_000


def vowel(formant, *, pitch=110, seconds=1.0):
    """Pulses of a pitch through one resonance, with the standard deviation 1."""
    pulses = np.zeros(int(seconds * RATE))
    pulses[:: RATE // pitch] = 1
    radius, angle = np.exp(-np.pi * 120 / RATE), 2 * np.pi * formant / RATE
    wave = scipy.signal.lfilter([1], [1, -2 * radius * np.cos(angle), radius**2], pulses)
    return (wave / wave.std()).astype(np.float32)


@functools.partial(jax.jit, static_argnums=(2, 3))
def perturbed(key, waveforms, formants, channel_db):
    return perturb(key, waveforms, formants=formants, channel_db=channel_db)


def test_nothing_to_move_gives_the_recording_back():
    waves = np.random.default_rng(0).normal(size=(3, 5_001)).astype(np.float32)
    np.testing.assert_allclose(perturbed(jax.random.key(0), waves, 0.0, 0.0), waves, atol=1e-4)


def test_formants_move_by_the_drawn_factor_and_harmonics_stay():
    key, size = jax.random.key(1), 12
    waves = np.stack([vowel(1_000)] * size)
    changed = np.asarray(perturbed(key, waves, 0.3, 0.0))
    draws = jax.random.uniform(jax.random.split(key)[0], (size, 1), minval=-1, maxval=1)
    factors = np.exp(np.asarray(draws)[:, 0] * np.log(1.3))
    assert factors.min() < 0.85 and factors.max() > 1.15
    frequencies, power = scipy.signal.welch(changed, RATE, nperseg=4096)
    near = (frequencies > 500) & (frequencies < 1_700)
    centres = (power[:, near] @ frequencies[near]) / power[:, near].sum(axis=1)
    assert np.corrcoef(np.log(centres), np.log(factors))[0, 1] > 0.99
    np.testing.assert_allclose(centres / 1_000, factors, rtol=0.1)
    # the power between harmonics stays far under that at them
    harmonic = RATE / (RATE // 110)
    at = np.abs(frequencies[near] / harmonic - np.round(frequencies[near] / harmonic))
    assert power[:, near][:, at > 0.3].sum() < 0.02 * power[:, near][:, at < 0.1].sum()


def test_channel_has_the_stated_deviation():
    waves = np.random.default_rng(0).normal(size=(200, RATE)).astype(np.float32)
    changed = perturbed(jax.random.key(2), waves, 0.0, 6.0)
    frequencies, before = scipy.signal.welch(waves, RATE, nperseg=256)
    gains = 10 * np.log10(scipy.signal.welch(np.asarray(changed), RATE, nperseg=256)[1] / before)
    angle = np.pi * frequencies / (RATE / 2)
    cosines = np.cos(angle[:, None] * np.arange(5))[2:-2]
    drawn = np.linalg.lstsq(cosines, gains[:, 2:-2].T, rcond=None)[0]
    np.testing.assert_allclose(drawn[1:].std(axis=1), 6.0, rtol=0.2)
    np.testing.assert_allclose(np.std(changed, axis=1), waves.std(axis=1), rtol=1e-4)


def test_sounds_stay_where_they_are():
    waves = np.zeros((4, RATE), np.float32)
    waves[:, 6_000:9_000] = np.random.default_rng(0).normal(size=(4, 3_000)) * 2
    changed = np.asarray(perturbed(jax.random.key(3), waves, 0.3, 6.0))
    outside = np.r_[0:5_700, 9_300:RATE]
    assert np.square(changed[:, outside]).sum() < 1e-3 * np.square(changed).sum()
    assert np.isfinite(
        perturbed(jax.random.key(3), np.zeros((4, RATE), np.float32), 0.3, 6.0)
    ).all()


def test_utterances_differ_and_do_not_depend_on_the_length_of_the_batch():
    waves = np.stack([vowel(700)] * 3)
    changed = np.asarray(perturbed(jax.random.key(4), waves, 0.2, 6.0))
    assert np.abs(changed[0] - changed[1]).max() > 0.1
    longer = np.asarray(perturbed(jax.random.key(4), np.pad(waves, ((0, 0), (0, 640))), 0.2, 6.0))
    scale = longer[:, :RATE].std(axis=1) / changed.std(axis=1)
    np.testing.assert_allclose(longer[:, :15_000] / scale[:, None], changed[:, :15_000], atol=1e-3)


def test_devices_exchange_no_audio():
    waves = np.random.default_rng(0).normal(size=(16, 4_000)).astype(np.float32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    run = jax.jit(functools.partial(perturb, formants=0.2, channel_db=6.0), out_shardings=rows)
    inputs = jax.random.key(5), jax.device_put(waves, rows)
    text = run.lower(*inputs).compile().as_text()
    assert not [name for name in ("all-gather", "all-to-all", "collective-permute") if name in text]
    one = perturbed(jax.random.key(5), waves, 0.2, 6.0)
    np.testing.assert_allclose(run(*inputs), one, atol=1e-4)
