"""Untrained networks of the tiny configuration, in memory and as runs on disk."""

import jax

from configs import tiny
from dinosr_jax.config import parse, to_text
from dinosr_jax.inference.pretrained import Pretrained
from dinosr_jax.training.checkpoint import Checkpoints
from dinosr_jax.training.optimizer import make_optimizer
from dinosr_jax.training.state import init_state


def tiny_config(**changes):
    """The parsed configuration, with changes by their dotted names."""
    config = tiny.get_config()
    config.update_from_flattened_dict(changes)
    return parse(config)


def make_state(config):
    """The state of a run that begins."""
    return jax.jit(lambda: init_state(config, optimizer=make_optimizer(config)))()


def tiny_model(*, step=0, **changes):
    """The network in memory."""
    config = tiny_config(**changes)
    state = make_state(config)
    parts = {name: getattr(state, name) for name in ("params", "teacher_params", "codebook")}
    return Pretrained(config, **parts, step=step)


def save_run(workdir, state, config, *, step=7, folder="checkpoints", **data):
    """Writes WORKDIR with one checkpoint in `folder`."""
    checkpoints = Checkpoints(workdir / folder)
    data = {"fingerprint": "", "next_step": step} | data
    checkpoints.save(step, state, config=config.to_dict(), data=data)
    checkpoints.wait()
    checkpoints.close()
    (workdir / "config.json").write_text(to_text(config) + "\n")
    return workdir


def write_run(folder, **changes):
    """A run whose teacher is not its student."""
    config = tiny_config(**{"teacher.init": "reinit"} | changes)
    return save_run(folder, make_state(config), config)
