"""The published recipe: DinoSR base on LibriSpeech 960 h (NeurIPS 2023, table 1 and appendix A).

Hardware: 16 V100 took the authors about 180 hours; a batch is 63 minutes of audio.
Expected loss (mean over the 8 codebooks, dev-clean; published log of a PyTorch re-implementation):
5.73 at the start, 3.12 after 2,500 updates, 2.09 after 10,000, 1.32 after 50,000, 1.03 at 400,000.
Commands:
  python -m dinosr_jax prepare --dataset=librispeech --data_dir=data/prepared/librispeech
  python main.py --config=configs/base.py --workdir=runs/base
A whole run needs the splits train_clean100, train_clean360, train_other500 and dev_clean.

The feature encoder learns to the end: the official code means to freeze it at update 200,001, but
what it does has no effect. --config.teacher.freeze_feature_encoder_step=200001 freezes it, as the
re-implementation does, and saves a sixth of the products of the second half. docs/reproducing.md
compares the whole recipe, field by field.
"""

from dinosr_jax.recipes import published_recipe


def get_config():
    """The recipe as it is, computing in bfloat16 (the authors: float16 with loss scaling)."""
    config = published_recipe()
    config.compute_dtype = "bfloat16"
    return config
