"""Every field of a configuration: the published values of pre-training, and of fine-tuning.

Trailing comments give the name of the field in fairseq, where it has one. Durations carry their
unit; all `*_steps` count optimizer updates.
"""

import ml_collections


def published_recipe() -> ml_collections.ConfigDict:
    """The recipe of the paper: base network, LibriSpeech 960 h, 400,000 updates."""
    config = ml_collections.ConfigDict()
    config.task = "pretrain"  # or "ctc": fine-tuning to recognise speech (finetuning_recipe)
    # ctc: the network that is fine-tuned, which is a run, one of its steps, or a checkpoint of
    # another project; '' starts from random parameters
    config.init = ""  # w2v_path
    config.workdir = "runs/base"  # save_dir
    config.seed = 0  # seed
    config.num_steps = 400_000  # max_update
    config.log_steps = 100  # log_interval
    config.eval_steps = 5_000  # validate_interval_updates
    config.eval_batches = 20  # at most so many held-out batches an evaluation
    config.checkpoint_steps = 5_000  # save_interval_updates
    config.keep_checkpoints = 3  # keep_interval_updates
    config.keep_every_steps = 50_000  # keep_interval_updates_pattern; 0 keeps the last only
    config.compute_dtype = "float32"  # bf16: "bfloat16"; all but the computation stays float32
    config.model = _model()
    config.teacher = _teacher()
    config.codebook = ml_collections.ConfigDict()
    # standard deviation of the first codewords, as published; at 0.1 few die in a small run
    config.codebook.init_scale = 1.0
    config.codebook.decay = 0.9  # codebook_init_decay
    config.codebook.end_decay = 0.9  # codebook_end_decay
    config.codebook.decay_steps = 0  # codebook_end_decay_step
    config.mask = ml_collections.ConfigDict()
    config.mask.prob = 0.8  # mask_prob
    config.mask.length = 10  # mask_length, in frames
    config.mask.min_spans = 1  # min_masks
    config.mask.require_same_masks = True  # require_same_masks
    config.optimizer = _optimizer()
    config.data = _data()
    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1  # devices along the axis; -1, for one of them, takes what is left
    config.mesh.fsdp = 1  # cuts the batch too, and the state
    config.mesh.tensor = 1  # cuts heads, feed-forward and codewords
    config.guard = _guard()
    config.ctc = _ctc()
    return config


def finetuning_recipe() -> ml_collections.ConfigDict:
    """What fairseq's recipes for fine-tuning the base network have in common (base_*.yaml).

    Where `init` names a checkpoint, the network has the structure of that.
    """
    config = published_recipe()
    config.task = "ctc"
    config.workdir = "runs/finetuned"
    config.eval_steps = 1_000
    config.eval_batches = 1_000
    config.checkpoint_steps = 1_000
    config.keep_every_steps = 0
    config.compute_dtype = "bfloat16"
    model = config.model
    model.dropout = 0.0  # dropout
    model.attention_dropout = 0.0  # attention_dropout
    model.activation_dropout = 0.1  # activation_dropout
    model.layerdrop = 0.1  # layerdrop
    config.mask.prob = 0.65  # mask_prob
    config.mask.length = 10  # mask_length
    optimizer = config.optimizer
    optimizer.eps = 1e-8  # adam_eps
    optimizer.weight_decay = 0.0  # weight_decay
    optimizer.final_scale = 0.05  # final_lr_scale
    optimizer.accumulation_steps = 4  # update_freq
    data = config.data
    data.data_dir = "data/prepared/librilight"
    data.dataset = "audio_folder"
    data.eval_data_dir = "data/prepared/librispeech"
    data.eval_dataset = "librispeech/lazy_decode"
    data.eval_split = "dev_other"  # valid_subset
    data.min_seconds = 0.1
    data.max_seconds = 35.0  # longer ones are left out and counted
    data.max_batch_seconds = 1600.0  # max_tokens * GPUs * update_freq / 16,000
    data.batch_multiple = 32  # of utterances: 4 micro-batches on 8 devices
    return config


def finetune_for(
    config: ml_collections.ConfigDict, *, num_steps: int, learning_rate: float
) -> ml_collections.ConfigDict:
    """Sets the length of a fine-tuning and its tri-stage schedule of 0.1, 0.4 and 0.5 of it."""
    config.num_steps = num_steps  # max_update
    config.optimizer.learning_rate = learning_rate  # lr
    config.optimizer.warmup_steps = num_steps // 10  # phase_ratio[0] * max_update
    config.optimizer.hold_steps = num_steps * 4 // 10
    config.optimizer.decay_steps = num_steps // 2
    return config


def _ctc() -> ml_collections.ConfigDict:
    """Fine-tuning only."""
    ctc = ml_collections.ConfigDict()
    ctc.network = "student"  # or 'teacher': whose parameters are taken from there
    # 'letters' (fairseq's 32), 'characters' or 'phones' (those of the training split), or a file
    # like fairseq's dict.ltr.txt
    ctc.vocabulary = "letters"
    ctc.lexicon = ""  # phones: a file of words and their phones; '' takes data.alignment
    ctc.language = ""  # only utterances of this language, as their dataset names it; '' takes all
    ctc.symbols = ()  # of the vocabulary; filled in when a run starts
    ctc.freeze_steps = 10_000  # freeze_finetune_updates; until then only the new layer learns
    ctc.channel_mask_prob = 0.5  # mask_channel_prob
    ctc.channel_mask_length = 64  # mask_channel_length
    ctc.eval_after_steps = 10_000  # validate_after_updates; the best is one of those evaluated
    return ctc


def _model() -> ml_collections.ConfigDict:
    model = ml_collections.ConfigDict()
    # 'conv', or 'mfcc', normalised over the utterance: nothing to learn; conv_layers is then
    # ((13, 400, 320),), coefficients, window and hop. For runs of little speech or compute
    model.front_end = "conv"
    # conv_feature_layers: (channels, kernel, stride)
    model.conv_layers = ((512, 10, 5),) + ((512, 3, 2),) * 4 + ((512, 2, 2),) * 2
    model.num_layers = 12  # encoder_layers
    model.width = 768  # encoder_embed_dim
    model.ffn_dim = 3072  # encoder_ffn_embed_dim
    model.num_heads = 12  # encoder_attention_heads
    model.pos_conv_width = 95  # conv_pos; each kernel is pos_conv_width // pos_conv_depth wide
    model.pos_conv_depth = 5  # pos_conv_depth
    model.pos_conv_groups = 16  # conv_pos_groups
    model.padding_mode = "zero"  # 'zero', or 'fairseq' for its leak of padding into real frames
    model.dropout = 0.1  # dropout
    model.attention_dropout = 0.1  # attention_dropout
    model.activation_dropout = 0.0  # activation_dropout
    model.layerdrop = 0.05  # encoder_layerdrop
    model.num_codebooks = 8  # average_top_k_layers
    model.codebook_size = 256  # codebook_size
    model.scan_layers = True  # one layer compiled once; False unrolls (same parameters)
    # the backward pass computes anew: 'none', 'dots' (all but products with weights) or 'full'
    model.remat = "dots"
    model.attention = "xla"  # or 'cudnn': flash attention on GPU, where no probability is dropped
    return model


def _teacher() -> ml_collections.ConfigDict:
    teacher = ml_collections.ConfigDict()
    teacher.scope = "encoder"  # ema_transformer_only: 'encoder' is true, 'full' is false
    teacher.init = "copy"  # 'copy' of the student, or 'reinit' (spidr)
    teacher.decay = 0.999  # ema_decay
    teacher.end_decay = 0.9999  # ema_end_decay
    teacher.decay_steps = 30_000  # ema_anneal_end_step
    teacher.freeze_step = 200_001  # freeze_teacher_step; first update without a change
    teacher.freeze_feature_encoder_step = 200_001  # freeze_pre_enc_modules, from the same update
    return teacher


def _optimizer() -> ml_collections.ConfigDict:
    optimizer = ml_collections.ConfigDict()
    optimizer.learning_rate = 5e-4  # lr
    optimizer.warmup_steps = 12_000  # phase_ratio[0] * max_update
    optimizer.hold_steps = 188_000  # phase_ratio[1] * max_update
    optimizer.decay_steps = 200_000  # phase_ratio[2] * max_update
    optimizer.init_scale = 0.01  # init_lr_scale
    optimizer.final_scale = 0.01  # final_lr_scale
    optimizer.b1 = 0.9  # adam_betas[0]
    optimizer.b2 = 0.98  # adam_betas[1]
    optimizer.eps = 1e-6  # adam_eps
    optimizer.weight_decay = 0.01  # weight_decay
    optimizer.accumulation_steps = 1  # update_freq; micro-batches that a batch is computed in
    optimizer.clip_norm = 0.0  # clip_norm; 0 does not clip
    return optimizer


def _data() -> ml_collections.ConfigDict:
    data = ml_collections.ConfigDict()
    data.data_dir = "data/prepared/librispeech"
    data.dataset = "librispeech/lazy_decode"  # or "audio_folder"
    data.train_split = "train_clean100+train_clean360+train_other500"  # train_subset
    data.eval_split = "dev_clean"  # valid_subset; '' trains without evaluation
    data.eval_data_dir = ""  # where eval_split is; '' is data_dir and dataset
    data.eval_dataset = ""
    # phone alignment of eval_split, any file that data.alignments reads, for PNMI while training;
    # '' takes the one that `prepare` found beside the audio, if any
    data.alignment = ""
    data.min_seconds = 2.0  # min_sample_size / 16,000
    data.max_seconds = 20.0  # max_sample_size / 16,000
    data.max_batch_seconds = 3800.0  # max_tokens * GPUs / 16,000
    data.max_rungs = 12  # lengths that utterances are cropped to; each is compiled once
    # where cropping to them loses a larger share of the audio, utterances are cut in two; 1 never
    data.max_ladder_loss = 0.03
    data.batch_multiple = 16  # batch sizes are multiples of it; the data axis divides it
    data.num_workers = 8  # num_workers
    data.prefetch_batches = 2
    return data


def _guard() -> ml_collections.ConfigDict:
    """Bounds that an update of a healthy run never reaches (training/guard.py)."""
    guard = ml_collections.ConfigDict()
    guard.action = "warn"  # or 'stop', after a checkpoint (fairseq stops, without one)
    guard.after_steps = 5_000  # later updates are looked at; a constant in fairseq
    guard.patience_steps = 10  # updates in a row under a bound; then it counts
    # 0 switches a bound off. Both are means over the channels of the standard deviation over the
    # frames of a batch: of the last layer of the teacher, and of the feature encoder
    guard.min_target_std = 0.1  # min_target_var
    guard.min_feature_std = 0.01  # min_pred_var, there of the prediction
    # of any codebook, as shares: from 1 to its V codewords, and of them. Collapsed small runs had
    # a perplexity of 10 % of V, healthy ones 33 % and more, the published one 62 % (dev-clean)
    guard.min_target_perplexity = 0.15
    guard.min_codeword_use = 0.2
    return guard
