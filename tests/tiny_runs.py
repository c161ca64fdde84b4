"""A run with a checkpoint of an untrained network, whose teacher is not its student."""

import jax

from configs import tiny
from dinosr_jax.config import parse, to_text
from dinosr_jax.training.checkpoint import Checkpoints
from dinosr_jax.training.optimizer import make_optimizer
from dinosr_jax.training.state import init_state


def write_run(folder, **changes):
    """Writes it, after 7 updates by name, with changes of the configuration."""
    config = tiny.get_config()
    config.teacher.init = "reinit"
    config.update_from_flattened_dict(changes)
    config = parse(config)
    state = jax.jit(lambda: init_state(config, optimizer=make_optimizer(config)))()
    checkpoints = Checkpoints(folder / "checkpoints")
    data = {"fingerprint": "", "next_step": 7}
    checkpoints.save(7, state, config=config.to_dict(), data=data)
    checkpoints.wait()
    checkpoints.close()
    (folder / "config.json").write_text(to_text(config))
    return folder
