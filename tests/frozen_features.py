"""Features that hold what is to be found, in one layer of several."""

import numpy as np

from dinosr_jax.evaluation.features.store import Features
from dinosr_jax.evaluation.probes.head_training import FeaturePart, HeadSettings

P, L, D = 4, 3, 12
SETTINGS = HeadSettings(
    num_steps=120, eval_steps=40, batch_size=8, project_width=16, learning_rates=(1e-5, 1e-2, 1.0)
)


def made(count, *, seed, frames=None):
    """Sequences of phones, each a direction in layer 1 for some frames; noise elsewhere.

    All are of `frames`, where it is given, with silence at the end.
    """
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(0).standard_normal((P + 1, D))
    arrays, labels = {}, {}
    for i in range(count):
        sequence = rng.integers(1, P + 1, rng.integers(2, 6))
        said = [n for phone in sequence for n in [phone] * rng.integers(2, 4) + [0]]
        said += [0] * (frames - len(said) if frames else 0)
        array = 0.3 * rng.standard_normal((L, len(said), D))
        array[1] += 3 * directions[said]
        arrays[f"{seed}-{i}"], labels[f"{seed}-{i}"] = array.astype(np.float32), sequence
    return FeaturePart(Features(tuple(range(L)), arrays), labels)
