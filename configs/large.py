"""A larger network: 24 layers of width 1,024 and 16 heads. Not published for DinoSR.

The sizes are those of wav2vec 2.0 and HuBERT large (302 M parameters in the layers; base: 85 M);
the peak learning rate is that of wav2vec 2.0 large on LibriSpeech, 3e-4 (base: 5e-4). Everything
else is the published recipe of base. Nothing of this was tuned, and no expected loss is known.

Fits 16 devices of 16 GB: the state is cut over eight, a batch is computed in two micro-batches.
`python -m dinosr_jax compile --config=configs/large.py --topology=v5e:4x4` says what it needs on a
TPU; benchmarks/RESULTS.md has a table.
Command: python main.py --config=configs/large.py --workdir=runs/large
"""

from dinosr_jax.recipes import published_recipe


def get_config():
    """The published recipe with a larger network, for 16 devices or a multiple."""
    config = published_recipe()
    config.workdir = "runs/large"
    config.compute_dtype = "bfloat16"
    config.mesh.fsdp = 8
    config.optimizer.accumulation_steps = 2
    config.data.batch_multiple = 32
    model = config.model
    model.num_layers = 24
    model.width = 1024
    model.ffn_dim = 4096
    model.num_heads = 16
    config.optimizer.learning_rate = 3e-4
    return config
