"""A small network on two hours of speech, for a laptop: a few minutes on 2 idle CPU cores.

It reads MFCC, and its student hears other voices than its teacher (docs/learning.md).

Command: bash launch/quickstart.sh
Expected on held-out speech after 800 updates: loss 2.68, accuracy 28 % (most frequent code 3 %),
perplexity 60 of 64, PNMI 0.44.
"""

import runpy
from pathlib import Path


def get_config():
    """The network of waveform.py behind MFCC, with a perturbed student and a slow teacher."""
    config = runpy.run_path(str(Path(__file__).with_name("waveform.py")))["get_config"]()
    config.workdir = "runs/quickstart"
    config.num_steps = 800
    model = config.model
    model.front_end = "mfcc"
    model.conv_layers = ((13, 400, 320),)
    model.width = 192
    model.ffn_dim = 768
    model.num_heads = 6
    config.perturb.formants = 0.2
    config.perturb.channel_db = 6.0
    config.mask.prob = 0.65
    config.mask.length = 6
    config.mask.unmasked_weight = 1.0
    config.teacher.scope = "encoder"
    config.teacher.decay = 0.9998
    config.teacher.end_decay = 0.9998
    config.codebook.init = "frames"
    config.codebook.decay = 0.9
    config.codebook.end_decay = 0.99
    config.codebook.decay_steps = 500
    config.optimizer.hold_steps = 500
    config.optimizer.decay_steps = 200
    return config
