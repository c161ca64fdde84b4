"""A small network on two hours of speech, for a laptop.

Command: bash launch/quickstart.sh
"""

from dinosr_jax.config import published_recipe


def get_config():
    """The published recipe with a small network and a schedule for some hundreds of updates."""
    config = published_recipe()
    config.workdir = "runs/quickstart"
    config.num_steps = 600
    config.log_steps = 10
    config.eval_steps = 100
    config.eval_batches = 10
    config.checkpoint_steps = 100
    config.keep_every_steps = 0
    config.compute_dtype = "float32"
    model = config.model
    model.conv_layers = ((64, 10, 5),) + ((64, 3, 2),) * 4 + ((64, 2, 2),) * 2
    model.num_layers = 4
    model.width = 128
    model.ffn_dim = 512
    model.num_heads = 4
    model.num_codebooks = 3
    model.codebook_size = 64
    model.layerdrop = 0.0
    config.teacher.scope = "full"
    config.teacher.decay_steps = 1000
    optimizer = config.optimizer
    optimizer.learning_rate = 5e-4
    optimizer.warmup_steps = 300
    optimizer.hold_steps = 10_000
    optimizer.decay_steps = 0
    data = config.data
    data.data_dir = "data/prepared/embedded"
    data.min_seconds = 1.0
    data.max_seconds = 6.0
    data.max_batch_seconds = 48.0
    data.max_rungs = 3
    data.batch_multiple = 8
    data.num_workers = 2
    return config
