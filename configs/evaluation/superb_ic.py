"""SUPERB's intent classification (s3prl, fluent_commands): action, object, location, all right.

Accuracy. SUPERB lets the learning rate be chosen from 0.1 to 1e-7; 1e-4 is the published one.
Features of 19 hours of the base network are 140 GB: where `max_memory`, in GiB, is less, they
are kept in a temporary folder, or with --cache=DIR there, in half of that.

Command: python -m dinosr_jax evaluate intent RUN data/fluent_speech_commands_dataset
  --config=configs/evaluation/superb_ic.py
"""

from ml_collections import ConfigDict


def get_config():
    """Options of `evaluate intent`."""
    config = ConfigDict()
    config.num_steps = 200_000
    config.eval_steps = 4_000
    config.batch_size = 32
    config.learning_rates = "1e-4"
    config.project_width = 256
    config.max_memory = 100.0
    return config
