"""A small network on two hours of speech, for a laptop: 6 minutes of training on 2 idle CPU cores.

Command: bash launch/quickstart.sh

What was tried on the embedded corpus, 300 to 500 updates each, with the teacher's scope 'full',
seven convolutions of 64 channels, kernels and strides as published, and positional convolutions of
2 x 5 frames, where nothing else is said. Figures are of held-out speech; PNMI is that of the
teacher's codes with the phones of the English validation and test utterances (their speaker is in
the training part too). Several fields changed at a time; this is no ablation.

- EMA 0.999, learning rate 5e-4, spans of 10: after 300 updates only the frequency of the codes is
  learnt: accuracy 6 % (most frequent code 5 %), perplexity 28 of 64, PNMI 0.03 to 0.04.
- EMA 0.99 to 0.999 over 500 updates, learning rate 1e-3, after 300 updates: accuracy 14 % with
  spans of 10 and no dropout, 16 % with spans of 5 and dropout 0.1 (most frequent code 7 % in
  both), perplexity 26 and 29, PNMI 0.06 to 0.08 in both.
- Codebook decay 0.9 from the start: half of the codewords die within ten updates (perplexity 21 to
  35 of 64), because a codeword that has caught few frames stays far outside the data. Decay 0.5,
  rising to 0.9 over 100 updates, lets each jump to its frames at once: perplexity 42 to 49 in every
  codebook; with spans of 5 and no dropout accuracy 12 % (most frequent code 4 %) and PNMI 0.12 to
  0.14 after 500 updates, 0.16 to 0.18 after 800.
- The same with learning rate 2e-3 and spans of 10: nothing is learnt (accuracy 4 %).
- No dropout also saves time: random numbers are slow on a CPU.
- First codewords a tenth as long (codebook.init_scale): none dies, at any decay. Published ones
  differ in length, and the shorter ones catch the frames of their neighbours: 46 of 64 were left,
  for good. Perplexity 60 of 64, PNMI 0.19 after 400 updates. This is the configuration below.
- Two convolutions whose filters are too short to resolve pitch (256 channels, 20 ms in all),
  teacher of scope 'encoder', such codewords: PNMI 0.24 after 400 updates, and not much more after
  600, in the time of 1,200 of the former. K-means on the untrained network has 0.16 there, 0.09
  here.

Not measured: positional convolutions of the published 5 x 19 frames. They were made small because
their zero padding shows the position in a crop to most frames of a short one.
"""

from dinosr_jax.recipes import published_recipe


def get_config():
    """The published recipe with a small network and a schedule for some hundreds of updates."""
    config = published_recipe()
    config.workdir = "runs/quickstart"
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
