"""The network of the quick start, for longer: a night on 2 CPU cores, or a GPU.

Commands:
  python -m dinosr_jax prepare --source=data/embedded --data_dir=data/prepared/embedded
  python main.py --config=configs/discover.py
Nobody has run the 60,000 updates. docs/learning.md shows what hundreds and thousands learn.
"""

import runpy
from pathlib import Path


def get_config():
    """The network of quickstart.py, and a schedule for a night."""
    config = runpy.run_path(str(Path(__file__).with_name("quickstart.py")))["get_config"]()
    config.workdir = "runs/discover"
    config.num_steps = 60_000
    config.eval_steps = 1_000
    config.checkpoint_steps = 1_000
    config.log_steps = 50
    config.optimizer.hold_steps = 30_000
    config.optimizer.decay_steps = 29_900
    return config
