"""States of random numbers, made without compiling anything."""

import jax
import jax.numpy as jnp
import numpy as np

from dinosr_jax.config import parse
from dinosr_jax.interop.formats import Imported, at_step
from dinosr_jax.training.optimizer import make_optimizer
from dinosr_jax.training.state import init_state


def random_network(config, *, step=7):
    """A network with a different number in every place, and zeros in the optimizer."""
    config = parse(config)
    abstract = jax.eval_shape(lambda: init_state(config, optimizer=make_optimizer(config)))
    random = np.random.default_rng(config.seed)
    state = jax.tree.map(lambda x: random.random(x.shape, np.float32) - 0.5, abstract)
    moments = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract.opt_state)
    state = at_step(state.replace(opt_state=moments), step)
    return Imported(config, state, step, "run", [], {"fingerprint": "abc"})


def random_params(shapes, *, scale):
    """Parameters of these shapes: normal, around 1 where they scale a LayerNorm, else around 0."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        mean = float(path[-1].key == "scale")
        return jnp.asarray(mean + scale * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def same_network(a, b):
    """Asserts that parameters, teacher and codebooks are the same bit for bit."""
    for part in ("params", "teacher_params", "codebook"):
        pair = getattr(a.state, part), getattr(b.state, part)
        jax.tree.map(np.testing.assert_array_equal, *pair)
