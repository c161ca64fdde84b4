"""SUPERB's phone recognition (s3prl, ctc/libriphone.yaml) on LibriSpeech: published PER 3.21.

That is DinoSR's; wav2vec 2.0 has 5.7, HuBERT 5.41. Features of 100 hours of the base network are
720 GB: where `max_memory`, in GiB, is less, they are kept in a temporary folder, or with
--cache=DIR there, in half of that. SUPERB lets the learning rate be chosen from 0.1 to 1e-7.

Command: python -m dinosr_jax evaluate recognition RUN data/prepared/librispeech
  --config=configs/evaluation/superb_pr.py --lexicon=librispeech-lexicon.txt
"""

from ml_collections import ConfigDict


def get_config():
    """Options of `evaluate recognition`."""
    config = ConfigDict()
    config.train_split = "train_clean100"
    config.valid_split = "dev_clean"
    config.split = "test_clean"
    config.stress = "keep"
    config.num_steps = 100_000
    config.eval_steps = 1_000
    config.batch_size = 32  # 16, gradients of two
    config.learning_rates = "0.01"
    config.max_memory = 400.0
    return config
