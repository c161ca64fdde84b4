"""SUPERB's keyword spotting (s3prl, speech_commands): Speech Commands 0.01, 12 classes.

Accuracy. SUPERB lets the learning rate be chosen from 0.1 to 1e-7; 1e-4 is the published one.
Features of 64,000 clips of the base network are 128 GB: where `max_memory`, in GiB, is less, they
are kept in a temporary folder, or with --cache=DIR there, in half of that.

Command: python -m dinosr_jax evaluate keywords RUN data/speech_commands_v0.01
  --config=configs/evaluation/superb_ks.py --test_folder=data/speech_commands_test_set_v0.01
"""

from ml_collections import ConfigDict


def get_config():
    """Options of `evaluate keywords`."""
    config = ConfigDict()
    config.num_steps = 200_000
    config.eval_steps = 4_000
    config.batch_size = 32
    config.learning_rates = "1e-4"
    config.project_width = 256
    config.max_memory = 100.0
    return config
