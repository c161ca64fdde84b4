"""Small configurations, their state on a mesh, and some updates in this process."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import jax

from dinosr_jax.config import parse
from dinosr_jax.training import sharding
from dinosr_jax.training.optimizer import make_optimizer
from dinosr_jax.training.state import init_state

CONFIGS = Path(__file__).parents[1] / "configs"


def config_of(name="tiny", **changes):
    """A parsed recipe; `optimizer__b1` changes `optimizer.b1`."""
    config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return parse(config)


def on_mesh(config):
    """Mesh of a configuration, its abstract state, and a function that makes the state."""
    mesh = sharding.make_mesh(config)
    init = lambda: init_state(config, optimizer=make_optimizer(config))
    return mesh, *sharding.make_state(mesh, init)


def run_updates(config, make_step, arrays_of, *, updates, start=None):
    """Updates with the batches `arrays_of(k)`; `states` and `metrics` are on the host."""
    mesh, abstract, make = on_mesh(config)
    where = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    state = make() if start is None else jax.device_put(start, where)
    step = sharding.jit_train_step(mesh, make_step(config), abstract)
    states, metrics = [jax.device_get(state)], []
    for k in range(updates):
        batch = sharding.shard_batch(mesh, **arrays_of(k))
        state, on_device = step(state, batch)
        states.append(jax.device_get(state))
        metrics.append(jax.device_get(on_device))
    return SimpleNamespace(**locals())
