"""Fine-tuning on 960 hours of LibriSpeech with CTC, with the numbers of fairseq's base_960h.yaml.

Batches hold up to 1,600 s of audio. The feature encoder never learns, and the waveforms are
normalised, as DinoSR needs it. Expected word error rates are not known here: the recipe was not run
on LibriSpeech by this project.
Commands:
  python -m dinosr_jax prepare --dataset=librispeech --data_dir=data/prepared/librispeech
  python main.py --config=configs/finetune_960h.py --config.init=runs/base
"""

from dinosr_jax.recipes import finetune_for, finetuning_recipe


def get_config():
    """The recipe for 960 hours of LibriSpeech."""
    config = finetuning_recipe()
    config.workdir = "runs/finetune_960h"
    config.mask.prob = 0.5
    config.ctc.channel_mask_prob = 0.1
    config.ctc.freeze_steps = 0
    config.ctc.eval_after_steps = 0
    config.optimizer.accumulation_steps = 1  # 8 GPUs, where the others have 2
    data = config.data
    data.data_dir = "data/prepared/librispeech"
    data.dataset = "librispeech/lazy_decode"
    data.eval_data_dir = data.eval_dataset = ""
    data.train_split = "train_clean100+train_clean360+train_other500"
    return finetune_for(config, num_steps=320_000, learning_rate=1e-4)
