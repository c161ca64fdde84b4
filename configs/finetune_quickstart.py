"""Fine-tuning of the quickstart's network on the English prompts of the embedded corpus, on a CPU.

Commands:
  bash launch/quickstart.sh
  python main.py --config=configs/finetune_quickstart.py --config.init=runs/quickstart
  python main.py --config=configs/finetune_quickstart.py --workdir=runs/finetune_random
The last starts with random parameters: what pre-training is worth is the difference.
"""

import runpy
from pathlib import Path

from dinosr_jax.recipes import finetuning_recipe


def get_config():
    """Fairseq's recipe with a schedule for some thousands of updates on a small network."""
    config = finetuning_recipe()
    config.workdir = "runs/finetune_quickstart"
    config.num_steps = 2500
    config.log_steps = 20
    config.eval_steps = 250
    config.checkpoint_steps = 250
    config.compute_dtype = "float32"
    quickstart = runpy.run_path(str(Path(__file__).with_name("quickstart.py")))["get_config"]()
    config.model = quickstart.model
    config.model.dropout = 0.1
    config.model.layerdrop = 0.0
    config.mask.prob = 0.3
    config.mask.require_same_masks = False
    ctc = config.ctc
    ctc.language = "en"
    ctc.freeze_steps = 20
    ctc.eval_after_steps = 0
    ctc.channel_mask_prob = 0.1
    ctc.channel_mask_length = 16
    optimizer = config.optimizer
    optimizer.learning_rate = 1e-3
    optimizer.warmup_steps = 200
    optimizer.hold_steps = 1200
    optimizer.decay_steps = 1100
    optimizer.accumulation_steps = 1
    data = config.data
    data.data_dir = "data/prepared/embedded"
    data.eval_data_dir = ""
    data.eval_dataset = ""
    data.train_split = "train"
    data.eval_split = "validation"
    data.max_seconds = 15.0
    data.max_batch_seconds = 32.0
    data.max_rungs = 6
    data.batch_multiple = 2
    data.num_workers = 2
    return config
