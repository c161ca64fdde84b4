"""A small network behind MFCC: two hours of speech, a night on 2 CPU cores, or a GPU.

Commands:
  python -m dinosr_jax prepare --source=data/embedded --data_dir=data/prepared/embedded
  python main.py --config=configs/discover.py
Expected after 1,200 updates, a quarter of an hour of one core: PNMI 0.43 to 0.44, as k-means on the
untrained network and more than on MFCC (0.40). Nobody has run the 60,000 updates below.
docs/learning.md shows what was tried on the way.
"""

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
    config.teacher.decay = 0.9998
    config.teacher.end_decay = 0.9998
    config.codebook.init = "frames"
    config.codebook.decay = 0.9
    config.codebook.end_decay = 0.99
    config.codebook.decay_steps = 500
    config.mask.prob = 0.65
    config.mask.length = 6
    config.optimizer.hold_steps = 30_000
    config.optimizer.decay_steps = 29_900
    return config
