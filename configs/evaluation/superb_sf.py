"""SUPERB's slot filling (s3prl, ctc/snips.yaml): Audio SNIPS, characters and marks of slots, CTC.

F1 of slot types, CER of slot values; the F1 of the validation part counts. SUPERB lets the learning
rate be chosen from 0.1 to 1e-7; 1e-4 is the published one. Features of the 110,000 utterances are
kept in a temporary folder where they take more than `max_memory`, or with --cache=DIR there.

Command: python -m dinosr_jax evaluate slots RUN data/SNIPS --config=configs/evaluation/superb_sf.py
"""

from ml_collections import ConfigDict


def get_config():
    """Options of `evaluate slots`."""
    config = ConfigDict()
    config.voices = "superb"
    config.num_steps = 200_000
    config.eval_steps = 2_000
    config.batch_size = 32
    config.learning_rates = "1e-4"
    config.project_width = 1024
    config.lstm_width = 1024
    config.lstm_layers = 2
    config.dropout = 0.2
    config.warp_frames = 5
    config.num_feature_masks = 4
    config.feature_mask_width = 50
    config.num_time_masks = 2  # time_mask_share is in its place
    config.time_mask_width = 40
    config.time_mask_share = 0.04
    config.max_memory = 100.0
    return config
