"""A network of a few thousand parameters for the tests: seconds an update, learns nothing.

Command: python main.py --config=configs/tiny.py --config.data.data_dir=DIR --workdir=runs/tiny
"""

from dinosr_jax.recipes import published_recipe


def get_config():
    """The published recipe with everything made small."""
    config = published_recipe()
    config.workdir = "runs/tiny"
    config.num_steps = 20
    config.log_steps = 1
    config.eval_steps = 10
    config.eval_batches = 2
    config.checkpoint_steps = 5
    config.keep_every_steps = 0
    model = config.model
    model.conv_layers = ((16, 10, 5),) + ((16, 3, 2),) * 4 + ((16, 2, 2),) * 2
    model.num_layers = 3
    model.width = 32
    model.ffn_dim = 64
    model.num_heads = 4
    model.pos_conv_width = 15
    model.pos_conv_depth = 3
    model.pos_conv_groups = 4
    model.num_codebooks = 2
    model.codebook_size = 16
    config.teacher.decay_steps = 100
    config.optimizer.warmup_steps = 10
    config.optimizer.hold_steps = 100
    config.optimizer.decay_steps = 100
    config.guard.after_steps = 10
    data = config.data
    data.data_dir = "data/prepared/embedded"
    data.dataset = "audio_folder"
    data.train_split = "train"
    data.eval_split = "validation"
    data.min_seconds = 1.0
    data.max_seconds = 4.0
    data.max_batch_seconds = 16.0
    data.max_rungs = 2
    data.max_ladder_loss = 1.0
    data.batch_multiple = 8
    data.num_workers = 2
    return config
