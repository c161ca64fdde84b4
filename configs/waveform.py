"""The published kind of network, small, on two hours of speech: convolutions read the waveform.

Other projects can read such a network (`export`). It learns less than that of quickstart.py, which
reads MFCC, and takes longer.

Commands:
  python -m dinosr_jax prepare --source=data/embedded --data_dir=data/prepared/embedded
  python main.py --config=configs/waveform.py
Expected on held-out speech after 1,200 updates: loss 3.06, accuracy 18 % (most frequent code 3 %),
perplexity 60 of 64, PNMI 0.25. docs/learning.md shows what was tried on the way.
"""

from dinosr_jax.recipes import published_recipe


def get_config():
    """The published recipe with a small network and a schedule for some hundreds of updates."""
    config = published_recipe()
    config.workdir = "runs/waveform"
    config.num_steps = 1_200
    config.log_steps = 10
    config.eval_steps = 100
    config.eval_batches = 10
    config.checkpoint_steps = 100
    config.keep_every_steps = 0
    model = config.model
    model.conv_layers = ((64, 10, 5),) + ((64, 3, 2),) * 4 + ((64, 2, 2),) * 2
    model.num_layers = 4
    model.width = 128
    model.ffn_dim = 512
    model.num_heads = 4
    model.pos_conv_width = 10
    model.pos_conv_depth = 2
    model.dropout = 0.0
    model.attention_dropout = 0.0
    model.layerdrop = 0.0
    model.num_codebooks = 3
    model.codebook_size = 64
    config.teacher.scope = "full"
    config.teacher.decay = 0.99
    config.teacher.end_decay = 0.999
    config.teacher.decay_steps = 500
    config.codebook.init_scale = 0.1
    config.codebook.decay = 0.5
    config.codebook.decay_steps = 100
    config.mask.length = 5
    optimizer = config.optimizer
    optimizer.learning_rate = 1e-3
    optimizer.warmup_steps = 100
    optimizer.hold_steps = 900
    optimizer.decay_steps = 300
    optimizer.final_scale = 0.1
    config.guard.after_steps = 200
    data = config.data
    data.data_dir = "data/prepared/embedded"
    data.dataset = "audio_folder"
    data.train_split = "train"
    data.eval_split = "validation"
    data.min_seconds = 1.0
    data.max_seconds = 4.0
    data.max_batch_seconds = 32.0
    data.max_rungs = 3
    data.max_ladder_loss = 1.0
    data.batch_multiple = 8
    data.num_workers = 2
    return config
