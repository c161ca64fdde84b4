"""A recogniser with random parameters, as a run on disk: quick to make, and it says something."""

import jax

from configs import tiny
from dinosr_jax.config import parse, to_text
from dinosr_jax.data.vocabulary import letters
from dinosr_jax.training.checkpoint import Checkpoints
from dinosr_jax.training.optimizer import make_optimizer
from dinosr_jax.training.state import init_state


def recogniser_config(*, symbols=None, **changes):
    config = tiny.get_config()
    config.task = "ctc"
    config.ctc.symbols = tuple(symbols or letters().symbols)
    config.update_from_flattened_dict(changes)
    return parse(config)


def write_recogniser(workdir, *, folder="checkpoints", step=3, **changes):
    """Writes WORKDIR with one checkpoint in `folder`; returns its state and configuration."""
    config = recogniser_config(**changes)
    state = jax.jit(lambda: init_state(config, optimizer=make_optimizer(config)))()
    params = dict(state.params)  # louder logits: other symbols win in other frames
    params["output"] = jax.tree.map(lambda x: 8 * x, params["output"])
    bias = params["output"]["bias"].at[1:4].set(-30.0)  # what a trained one never says
    params["output"] = params["output"] | {"bias": bias}
    state = state.replace(params=params)
    (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
    (workdir / "config.json").write_text(to_text(config) + "\n")
    checkpoints = Checkpoints(workdir / folder)
    data = {"fingerprint": "random", "next_step": step, "metrics": {"eval_wer": 0.5}}
    checkpoints.save(step, state, config=config.to_dict(), data=data)
    checkpoints.wait()
    checkpoints.close()
    return state, config
