"""A recogniser with random parameters, as a run on disk: quick to make, and it says something."""

import jax

from dinosr_jax.data.vocabulary import letters
from tests.tiny_runs import make_state, save_run, tiny_config


def recogniser_config(*, symbols=None, **changes):
    symbols = tuple(symbols or letters().symbols)
    return tiny_config(**{"task": "ctc", "ctc.symbols": symbols} | changes)


def write_recogniser(workdir, *, folder="checkpoints", step=3, **changes):
    """Writes WORKDIR with one checkpoint in `folder`; returns its state and configuration."""
    config = recogniser_config(**changes)
    state = make_state(config)
    params = dict(state.params)  # louder logits: other symbols win in other frames
    params["output"] = jax.tree.map(lambda x: 8 * x, params["output"])
    bias = params["output"]["bias"].at[1:4].set(-30.0)  # what a trained one never says
    params["output"] = params["output"] | {"bias": bias}
    state = state.replace(params=params)
    (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
    data = {"fingerprint": "random", "metrics": {"eval_wer": 0.5}}
    save_run(workdir, state, config, step=step, folder=folder, **data)
    return state, config
