"""Every field of a configuration, and the recipes: pre-training as published, and fine-tuning.

`FIELDS` is the one place that knows a field; configuration, checkpoints, scaling and interoperation
ask it. Durations carry their unit; all `*_steps` count optimizer updates.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import ml_collections

from dinosr_jax.files import LOCAL, is_url


class Check(NamedTuple):
    """Which values a field may have: a test, and the words for it."""

    holds: Callable[[Any], bool]
    expected: str


def one_of(*values: str) -> Check:
    """Allows these values only."""
    return Check(lambda value: value in values, "one of " + ", ".join(values))


def _is_convolution(value: Any) -> bool:
    """Whether a value is three whole numbers of more than 0."""
    whole = lambda number: type(number) is int and number > 0
    return isinstance(value, tuple) and len(value) == 3 and all(map(whole, value))


ANY = Check(lambda value: True, "")
POSITIVE = Check(lambda value: 0 < value < math.inf, "more than 0")
NOT_NEGATIVE = Check(lambda value: 0 <= value < math.inf, "0 or more")
SHARE = Check(lambda value: 0 <= value < 1, "at least 0 and less than 1")
FRACTION = Check(lambda value: 0 <= value <= 1, "0 to 1")
TEXTS = Check(
    lambda value: all(isinstance(text, str) for text in value),
    "texts (filled in when a run starts)",
)
CONVOLUTIONS = Check(
    lambda value: bool(value) and all(map(_is_convolution, value)),
    "(channels, kernel, stride) of each convolution, all more than 0",
)


def _is_mixture(value: Any) -> bool:
    """Whether a value names folders, each once, with finite weights of more than 0."""
    if not all(isinstance(part, tuple) and len(part) == 2 for part in value):
        return False
    names = [name for name, _ in value]
    if not all(isinstance(name, str) and name and not is_url(name) for name in names):
        return False
    weights = [weight for _, weight in value]
    numbers = all(type(weight) in (int, float) for weight in weights)
    return numbers and all(0 < w < math.inf for w in weights) and len(set(names)) == len(names)


MIXTURE = Check(
    _is_mixture,
    "(folder of a prepared dataset, below data_dir; weight) of each, no folder twice, weights of "
    "more than 0",
)
PATH = Check(lambda value: not is_url(value), LOCAL)
AXIS = Check(lambda value: value == -1 or value > 0, "-1, or more than 0")

_ALWAYS: Any = object()  # every run has the field


class Field(NamedTuple):
    """What is known of one field.

    Attributes:
      default: Value of the published recipe; every value has its type.
      check: The values that are allowed.
      fairseq: Name in fairseq and the official code; other than a plain name, how it is derived.
      may_change: A run may go on with another value.
      scales: How it follows a batch of another size (`training.scaling`); '' does not.
      fixes: 'network' where the shapes of the parameters depend on it, so that fine-tuning takes
        it from `init`; 'checkpoint' where an imported checkpoint keeps it for another reason.
      older: Value in runs that are older than the field.
    """

    default: Any
    check: Check = ANY
    fairseq: str = ""
    may_change: bool = False
    scales: Literal["", "steps", "decay", "rate", "epsilon", "beta"] = ""
    fixes: Literal["", "network", "checkpoint"] = ""
    older: Any = _ALWAYS

    @property
    def came_later(self) -> bool:
        """Whether there are runs without the field."""
        return self.older is not _ALWAYS


_PUBLISHED_CONVOLUTIONS = ((512, 10, 5),) + ((512, 3, 2),) * 4 + ((512, 2, 2),) * 2

FIELDS: dict[str, Field] = {
    # what the student predicts (objective/objectives.py): 'dinosr', 'spidr' or 'data2vec'
    "objective": Field(
        "dinosr", one_of("dinosr", "spidr", "data2vec"), fixes="checkpoint", older="dinosr"
    ),
    # or "ctc": fine-tuning to recognise speech (finetuning_recipe)
    "task": Field("pretrain", one_of("pretrain", "ctc"), fixes="checkpoint", older="pretrain"),
    # ctc: the network that is fine-tuned, which is a run, one of its steps, or a checkpoint of
    # another project; '' starts from random parameters
    "init": Field("", PATH, fairseq="w2v_path", may_change=True, older=""),
    "workdir": Field("runs/base", PATH, fairseq="save_dir", may_change=True),
    "seed": Field(0, NOT_NEGATIVE, fairseq="seed"),
    "num_steps": Field(400_000, POSITIVE, fairseq="max_update", may_change=True, scales="steps"),
    "log_steps": Field(100, POSITIVE, fairseq="log_interval", may_change=True),
    "eval_steps": Field(5_000, POSITIVE, fairseq="validate_interval_updates", may_change=True),
    # at most so many held-out batches an evaluation
    "eval_batches": Field(20, POSITIVE, may_change=True),
    "checkpoint_steps": Field(5_000, POSITIVE, fairseq="save_interval_updates", may_change=True),
    "keep_checkpoints": Field(3, POSITIVE, fairseq="keep_interval_updates", may_change=True),
    # 0 keeps the last `keep_checkpoints` only
    "keep_every_steps": Field(
        50_000, NOT_NEGATIVE, fairseq="keep_interval_updates_pattern", may_change=True
    ),
    # "bfloat16": the products are; parameters, targets, codebooks, softmax and loss stay float32
    "compute_dtype": Field(
        "float32", one_of("float32", "bfloat16"), fairseq="bf16: 'bfloat16' is true"
    ),
    # 'conv', or 'mfcc', normalised over the utterance: nothing to learn; conv_layers is then
    # ((13, 400, 320),), coefficients, window and hop. For runs of little speech or compute
    "model.front_end": Field("conv", one_of("conv", "mfcc"), fixes="network", older="conv"),
    # (channels, kernel, stride) of each convolution
    "model.conv_layers": Field(
        _PUBLISHED_CONVOLUTIONS, CONVOLUTIONS, fairseq="conv_feature_layers", fixes="network"
    ),
    "model.num_layers": Field(12, POSITIVE, fairseq="encoder_layers", fixes="network"),
    "model.width": Field(768, POSITIVE, fairseq="encoder_embed_dim", fixes="network"),
    "model.ffn_dim": Field(3072, POSITIVE, fairseq="encoder_ffn_embed_dim", fixes="network"),
    "model.num_heads": Field(12, POSITIVE, fairseq="encoder_attention_heads", fixes="network"),
    # each kernel is pos_conv_width // pos_conv_depth wide
    "model.pos_conv_width": Field(95, POSITIVE, fairseq="conv_pos", fixes="network"),
    "model.pos_conv_depth": Field(5, POSITIVE, fairseq="pos_conv_depth", fixes="network"),
    "model.pos_conv_groups": Field(16, POSITIVE, fairseq="conv_pos_groups", fixes="network"),
    # 'zero', or 'fairseq' for its leak of padding into real frames
    "model.padding_mode": Field("zero", one_of("zero", "fairseq"), fixes="checkpoint"),
    "model.dropout": Field(0.1, SHARE, fairseq="dropout"),
    "model.attention_dropout": Field(0.1, SHARE, fairseq="attention_dropout"),
    "model.activation_dropout": Field(0.0, SHARE, fairseq="activation_dropout"),
    "model.layerdrop": Field(0.05, SHARE, fairseq="encoder_layerdrop"),
    # top layers of the teacher that make targets; objective 'data2vec' has no codebooks of them
    "model.num_codebooks": Field(8, POSITIVE, fairseq="average_top_k_layers", fixes="network"),
    "model.codebook_size": Field(256, POSITIVE, fairseq="codebook_size", fixes="network"),
    # False holds the biases of query, key and value at the zeros that they start from, as spidr
    "model.qkv_bias": Field(True, fixes="checkpoint", older=True),
    # one layer compiled once; False unrolls (same parameters)
    "model.scan_layers": Field(True, may_change=True),
    # the backward pass computes anew: 'none', 'dots' (all but products with weights) or 'full'
    "model.remat": Field("dots", one_of("none", "dots", "full"), may_change=True),
    # 'fused' keeps the probabilities on the chip, on TPU; 'cudnn' on GPU, where none is dropped;
    # 'auto' is 'fused' on TPU and 'xla' elsewhere
    "model.attention": Field("auto", one_of("auto", "xla", "fused", "cudnn"), may_change=True),
    "mask.prob": Field(0.8, FRACTION, fairseq="mask_prob"),
    "mask.length": Field(10, POSITIVE, fairseq="mask_length"),  # frames
    "mask.min_spans": Field(1, NOT_NEGATIVE, fairseq="min_masks"),
    # all utterances of a group keep as many masked frames as the one with the fewest
    "mask.require_same_masks": Field(True, fairseq="require_same_masks"),
    # audio of such a group, at most; 0 makes one group of the whole batch
    "mask.group_seconds": Field(237.5, NOT_NEGATIVE, fairseq="max_tokens / 16,000", older=0.0),
    # weight of the loss on frames that are not masked, HuBERT's pred_nomask_weight; 0 as published
    "mask.unmasked_weight": Field(0.0, NOT_NEGATIVE, older=0.0),
    # the student hears another voice than the teacher (objective/perturbation.py): formants move
    # by a factor of 1 + this at most; 0 leaves them, as published
    "perturb.formants": Field(0.0, SHARE, older=0.0),
    # and another channel: standard deviation of each of four cosines over frequency, in dB
    "perturb.channel_db": Field(0.0, NOT_NEGATIVE, older=0.0),
    # 'encoder': the teacher reads the student's projected features
    "teacher.scope": Field(
        "encoder",
        one_of("encoder", "full"),
        fairseq="ema_transformer_only and ema_layers_only: 'encoder' is true",
        fixes="checkpoint",
    ),
    "teacher.init": Field("copy", one_of("copy", "reinit")),  # 'reinit' is spidr's
    # how the decay rises: 'linear' from decay to end_decay in decay_steps, or 'exponential' from
    # decay to 1, 1 - (1 - decay) exp(-update / timescale_steps), as spidr's SpidR
    "teacher.schedule": Field("linear", one_of("linear", "exponential"), older="linear"),
    "teacher.timescale_steps": Field(20_000, POSITIVE, scales="steps", older=20_000),
    "teacher.decay": Field(0.999, FRACTION, fairseq="ema_decay", scales="decay"),
    "teacher.end_decay": Field(0.9999, FRACTION, fairseq="ema_end_decay", scales="decay"),
    "teacher.decay_steps": Field(
        30_000, NOT_NEGATIVE, fairseq="ema_anneal_end_step", scales="steps"
    ),
    # first update without a change
    "teacher.freeze_step": Field(200_001, POSITIVE, fairseq="freeze_teacher_step", scales="steps"),
    # first update without a change of the student's feature encoder and projection; 0 never
    # freezes them, as the official code does, whose freeze_pre_enc_modules has no effect
    # (docs/reproducing.md); spidr freezes them from 200,001 on
    "teacher.freeze_feature_encoder_step": Field(0, NOT_NEGATIVE, scales="steps"),
    # the first codewords: 'noise', as published, or 'frames' of the first batch (docs/learning.md)
    "codebook.init": Field("noise", one_of("noise", "frames"), older="noise"),
    # standard deviation of that noise, as published; at 0.1 few die in a small run
    "codebook.init_scale": Field(1.0, POSITIVE, older=1.0),
    "codebook.decay": Field(0.9, FRACTION, fairseq="codebook_init_decay", scales="decay"),
    "codebook.end_decay": Field(0.9, FRACTION, fairseq="codebook_end_decay", scales="decay"),
    "codebook.decay_steps": Field(
        0, NOT_NEGATIVE, fairseq="codebook_end_decay_step", scales="steps"
    ),
    "optimizer.learning_rate": Field(5e-4, NOT_NEGATIVE, fairseq="lr", scales="rate"),
    "optimizer.warmup_steps": Field(
        12_000, NOT_NEGATIVE, fairseq="phase_ratio[0] * max_update", scales="steps"
    ),
    "optimizer.hold_steps": Field(
        188_000, NOT_NEGATIVE, fairseq="phase_ratio[1] * max_update", scales="steps"
    ),
    "optimizer.decay_steps": Field(
        200_000, NOT_NEGATIVE, fairseq="phase_ratio[2] * max_update", scales="steps"
    ),
    "optimizer.init_scale": Field(0.01, FRACTION, fairseq="init_lr_scale"),
    "optimizer.final_scale": Field(0.01, FRACTION, fairseq="final_lr_scale"),
    "optimizer.b1": Field(0.9, SHARE, fairseq="adam_betas[0]", scales="beta"),
    "optimizer.b2": Field(0.98, SHARE, fairseq="adam_betas[1]", scales="beta"),
    "optimizer.eps": Field(1e-6, NOT_NEGATIVE, fairseq="adam_eps", scales="epsilon"),
    "optimizer.weight_decay": Field(0.01, NOT_NEGATIVE, fairseq="weight_decay"),
    # micro-batches that a batch is computed in
    "optimizer.accumulation_steps": Field(1, POSITIVE, fairseq="update_freq", may_change=True),
    # 0 does not clip
    "optimizer.clip_norm": Field(0.0, NOT_NEGATIVE, fairseq="clip_norm", fixes="checkpoint"),
    "data.data_dir": Field("data/prepared/librispeech", PATH, fairseq="data", may_change=True),
    "data.dataset": Field("librispeech/lazy_decode"),  # or "audio_folder"
    # trains on several datasets: (folder below data_dir, or a whole path; how often an epoch uses
    # each of its utterances) of each; () is data_dir alone
    "data.mixture": Field((), MIXTURE, older=()),
    "data.train_split": Field(
        "train_clean100+train_clean360+train_other500", fairseq="train_subset"
    ),
    # '' trains without evaluation
    "data.eval_split": Field("dev_clean", fairseq="valid_subset", may_change=True),
    # where eval_split is; '' is data_dir and dataset
    "data.eval_data_dir": Field("", PATH, may_change=True, older=""),
    "data.eval_dataset": Field("", may_change=True, older=""),
    # phone alignment of eval_split, any file that data.alignments reads, for PNMI while training;
    # '' takes the one that `prepare` found beside the audio, if any
    "data.alignment": Field("", PATH, may_change=True, older=""),
    "data.min_seconds": Field(2.0, POSITIVE, fairseq="min_sample_size / 16,000"),
    "data.max_seconds": Field(20.0, POSITIVE, fairseq="max_sample_size / 16,000"),
    "data.max_batch_seconds": Field(3800.0, POSITIVE, fairseq="max_tokens * GPUs / 16,000"),
    # lengths that utterances are cropped to; each is compiled once
    "data.max_rungs": Field(12, POSITIVE),
    # where cropping to them loses a larger share of the audio, utterances are cut in two; 1 never
    "data.max_ladder_loss": Field(0.03, FRACTION),
    # batch sizes are multiples of it; the data axis divides it
    "data.batch_multiple": Field(16, POSITIVE),
    "data.num_workers": Field(8, POSITIVE, fairseq="num_workers", may_change=True),
    "data.prefetch_batches": Field(2, POSITIVE, may_change=True),
    # devices along the axis; -1, for one of them, takes what is left
    "mesh.data": Field(-1, AXIS, may_change=True),
    "mesh.fsdp": Field(1, AXIS, may_change=True),  # cuts the batch too, and the state
    "mesh.tensor": Field(1, AXIS, may_change=True),  # cuts heads, feed-forward and codewords
    # bounds that an update of a healthy run never reaches (training/guard.py); 'stop' ends the
    # run after a checkpoint (fairseq ends it without one)
    "guard.action": Field("warn", one_of("warn", "stop"), may_change=True, older="warn"),
    # later updates are looked at; a constant in fairseq
    "guard.after_steps": Field(5_000, NOT_NEGATIVE, may_change=True, scales="steps", older=5_000),
    # updates in a row under a bound; then it counts
    "guard.patience_steps": Field(10, POSITIVE, may_change=True, older=10),
    # 0 switches a bound off. Both are means over the channels of the standard deviation over the
    # frames of a batch: of the last layer of the teacher, and of the feature encoder
    "guard.min_target_std": Field(
        0.1, NOT_NEGATIVE, fairseq="min_target_var", may_change=True, older=0.1
    ),
    "guard.min_feature_std": Field(
        0.01, NOT_NEGATIVE, fairseq="min_pred_var, of the prediction", may_change=True, older=0.01
    ),
    # of any codebook, as shares: from 1 to its V codewords, and of them. Collapsed small runs had
    # a perplexity of 10 % of V, healthy ones 33 % and more, the published one 62 % (dev-clean)
    "guard.min_target_perplexity": Field(0.15, FRACTION, may_change=True, older=0.15),
    "guard.min_codeword_use": Field(0.2, FRACTION, may_change=True, older=0.2),
    # fine-tuning only, as all that follow: whose parameters are taken from `init`
    "ctc.network": Field("student", one_of("student", "teacher"), older="student"),
    # 'letters' (fairseq's 32), 'characters' or 'phones' (those of the training split), or a file
    # like fairseq's dict.ltr.txt
    "ctc.vocabulary": Field("letters", PATH, may_change=True, older="letters"),
    # phones: a file of words and their phones; '' takes data.alignment
    "ctc.lexicon": Field("", PATH, may_change=True, older=""),
    # only utterances of this language, as their dataset names it; '' takes all
    "ctc.language": Field("", older=""),
    # of the vocabulary; filled in when a run starts
    "ctc.symbols": Field((), TEXTS, fixes="checkpoint", older=()),
    # until then only the new layer learns
    "ctc.freeze_steps": Field(
        10_000, NOT_NEGATIVE, fairseq="freeze_finetune_updates", scales="steps", older=10_000
    ),
    "ctc.channel_mask_prob": Field(0.5, FRACTION, fairseq="mask_channel_prob", older=0.5),
    "ctc.channel_mask_length": Field(64, POSITIVE, fairseq="mask_channel_length", older=64),
    # the best is one of those evaluated
    "ctc.eval_after_steps": Field(
        10_000, NOT_NEGATIVE, fairseq="validate_after_updates", scales="steps", older=10_000
    ),
}


def published_recipe() -> ml_collections.ConfigDict:
    """The recipe of the paper: base network, LibriSpeech 960 h, 400,000 updates."""
    config = ml_collections.ConfigDict()
    for name, field in FIELDS.items():
        *section, last = name.split(".")
        if section and section[0] not in config:
            config[section[0]] = ml_collections.ConfigDict()
        (config[section[0]] if section else config)[last] = field.default
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
    config.mask.group_seconds = 200.0  # max_tokens / 16,000
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
