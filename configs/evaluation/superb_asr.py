"""SUPERB's speech recognition (s3prl, asr): LibriSpeech, WER without a language model 4.71.

That is DinoSR's; wav2vec 2.0 has 6.43, HuBERT 6.42. SUPERB lets the learning rate be chosen from
0.1 to 1e-7; 1e-4 is the published one. Features of 100 hours of the base network are 720 GB:
where `max_memory`, in GiB, is less, they are kept in a temporary folder, or with --cache=DIR there,
in half of that. --emissions=DIR writes what a decoder with an n-gram reads.

Command: python -m dinosr_jax evaluate asr RUN data/prepared/librispeech
  --config=configs/evaluation/superb_asr.py
"""

from ml_collections import ConfigDict


def get_config():
    """Options of `evaluate asr`."""
    config = ConfigDict()
    config.train_split = "train_clean100"
    config.valid_split = "dev_clean"
    config.split = "test_clean"
    config.symbols = "letters"
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
    config.num_time_masks = 2
    config.time_mask_width = 40
    config.time_mask_share = 0.0
    config.max_memory = 100.0
    return config
