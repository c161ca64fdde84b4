"""Placeholder."""

import runpy
from pathlib import Path


def get_config():
    """A network behind MFCC, and a schedule for a night."""
    config = runpy.run_path(str(Path(__file__).with_name("quickstart.py")))["get_config"]()
    config.workdir = "runs/discover"
    config.num_steps = 60_000
    config.eval_steps = 1_000
    config.checkpoint_steps = 1_000
    config.log_steps = 50
    model = config.model
    model.front_end = "mfcc"
    model.conv_layers = ((13, 400, 320),)
    model.width = 192
    model.ffn_dim = 768
    model.num_heads = 6
    config.teacher.scope = "encoder"
    config.teacher.decay = 0.9999
    config.teacher.end_decay = 0.9999
    config.mask.length = 10
    config.optimizer.hold_steps = 30_000
    config.optimizer.decay_steps = 29_900
    return config
