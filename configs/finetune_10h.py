"""Fine-tuning on 10 hours of Libri-Light with CTC, with the numbers of fairseq's base_10h.yaml.

Batches hold up to 1,600 s of audio. The feature encoder never learns, and the waveforms are
normalised, as DinoSR needs it. Expected word error rates are not known here: the recipe was not run
on LibriSpeech by this project.
Commands (librispeech_finetuning is the folder that Libri-Light publishes):
  python -m dinosr_jax prepare --source=librispeech_finetuning --data_dir=data/prepared/librilight
  python -m dinosr_jax prepare --dataset=librispeech --data_dir=data/prepared/librispeech
  python main.py --config=configs/finetune_10h.py --config.init=runs/base
"""

from dinosr_jax.data.prepare.librilight import TEN_HOURS
from dinosr_jax.recipes import finetune_for, finetuning_recipe


def get_config():
    """The recipe for 10 hours of Libri-Light."""
    config = finetuning_recipe()
    config.workdir = "runs/finetune_10h"
    config.model.layerdrop = 0.05
    config.data.train_split = TEN_HOURS
    return finetune_for(config, num_steps=20_000, learning_rate=5e-5)
