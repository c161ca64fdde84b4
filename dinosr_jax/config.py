"""Every field of a training configuration, with the published value, and the check of one.

Trailing comments give the name of the field in fairseq, where it has one. Durations carry their
unit; all `*_steps` count optimizer updates.
"""

import ast
import difflib
import json
import math
import runpy
from collections.abc import Iterable
from typing import Any

import ml_collections


def published_recipe() -> ml_collections.ConfigDict:
    """The recipe of the paper: base network, LibriSpeech 960 h, 400,000 updates."""
    config = ml_collections.ConfigDict()
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
    return config


def _model() -> ml_collections.ConfigDict:
    model = ml_collections.ConfigDict()
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


# Fields that came after the first runs: a configuration without them gets the published values.
_LATER = ("config.guard", "config.data.alignment")


def parse(config: Any) -> ml_collections.ConfigDict:
    """Checks a configuration and freezes it.

    Args:
      config: ConfigDict or nested dict, with exactly the fields of `published_recipe`; those that
        the configurations of older runs lack may be missing.

    Returns:
      Frozen ConfigDict with tuples for lists and floats where floats are expected.

    Raises:
      ValueError: A field is unknown, missing, of the wrong type or out of range; all of them are
        named.
    """
    errors: list[str] = []
    raw = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    raw = complete(raw) if isinstance(raw, dict) else raw
    values = _conform(raw, published_recipe().to_dict(), "config", errors)
    if not errors:
        _check_values(ml_collections.ConfigDict(values), errors)
    if errors:
        raise ValueError("\n".join(["the configuration has errors:", *errors]))
    return ml_collections.FrozenConfigDict(values)


def complete(values: dict) -> dict:
    """A nested dict of an older run, with the fields that came later; what else it lacks, lacks."""
    values = dict(values)
    for name in _LATER:
        *rooms, field = name.split(".")[1:]
        room, default = values, published_recipe().to_dict()
        for part in rooms:
            if not isinstance(room.get(part), dict):
                break
            room[part] = dict(room[part])
            room, default = room[part], default[part]
        else:
            room.setdefault(field, default[field])
    return values


def to_text(config: Any) -> str:
    """A resolved configuration as JSON text, one field a line, sorted."""
    return json.dumps(json.loads(config.to_json()), indent=2, sort_keys=True)


def differences(old: dict, new: dict, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Fields in which two configurations (nested dicts) differ: name -> (old, new)."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted(set(old) | set(new)):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            found |= differences(a, b, f"{prefix}{name}.")
        elif _tuples(a) != _tuples(b):
            found[prefix + name] = (a, b)
    return found


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value


def _conform(found: Any, expected: Any, name: str, errors: list[str]) -> Any:
    """Returns `found` in the types of `expected`; appends what does not fit to `errors`."""
    if isinstance(expected, dict):
        if not isinstance(found, dict):
            errors.append(f"  {name}: found {found!r}, expected the fields {', '.join(expected)}")
            return found
        for field in found.keys() - expected.keys():
            close = difflib.get_close_matches(str(field), expected, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(expected)}"
            errors.append(f"  {name}.{field}: unknown field; {hint}")
        for field in expected.keys() - found.keys():
            errors.append(f"  {name}.{field}: missing; the published value is {expected[field]!r}")
        common = [field for field in expected if field in found]
        return {f: _conform(found[f], expected[f], f"{name}.{f}", errors) for f in common}
    if isinstance(expected, float) and isinstance(found, int) and not isinstance(found, bool):
        return float(found)
    if isinstance(expected, tuple) and isinstance(found, list | tuple):
        return _tuples(found)
    if type(found) is not type(expected):
        kind = type(expected).__name__
        errors.append(f"  {name}: found {found!r} ({type(found).__name__}), expected {kind}")
    return found


_CHOICES = {
    "compute_dtype": ("float32", "bfloat16"),
    "model.padding_mode": ("zero", "fairseq"),
    "model.remat": ("none", "dots", "full"),
    "model.attention": ("xla", "cudnn"),
    "teacher.scope": ("encoder", "full"),
    "teacher.init": ("copy", "reinit"),
    "guard.action": ("warn", "stop"),
}


def _check_values(c: ml_collections.ConfigDict, errors: list[str]) -> None:
    """Appends every field that is out of range, or that does not fit another, to `errors`."""

    def need(holds: bool, field: str, found: Any, expected: str) -> None:
        if not holds:
            errors.append(f"  config.{field}: found {found!r}, expected {expected}")

    m, d = c.model, c.data
    positive = """num_steps log_steps eval_steps eval_batches checkpoint_steps keep_checkpoints
        model.num_layers model.width model.ffn_dim model.num_heads model.pos_conv_width
        model.pos_conv_depth model.pos_conv_groups model.num_codebooks model.codebook_size
        optimizer.accumulation_steps teacher.freeze_step teacher.freeze_feature_encoder_step
        mask.length data.min_seconds data.max_batch_seconds data.max_rungs
        data.batch_multiple data.num_workers data.prefetch_batches guard.patience_steps"""
    not_negative = """seed keep_every_steps codebook.decay_steps mask.min_spans
        optimizer.learning_rate optimizer.warmup_steps optimizer.hold_steps optimizer.decay_steps
        optimizer.eps optimizer.weight_decay optimizer.clip_norm teacher.decay_steps
        guard.after_steps guard.min_target_std guard.min_feature_std"""
    shares = """model.dropout model.attention_dropout model.activation_dropout model.layerdrop
        optimizer.b1 optimizer.b2"""
    fractions = """teacher.decay teacher.end_decay codebook.decay codebook.end_decay mask.prob
        optimizer.init_scale optimizer.final_scale data.max_ladder_loss
        guard.min_target_perplexity guard.min_codeword_use"""
    value = lambda field: _nested(c, field)
    for axis, size in c.mesh.items():
        need(size == -1 or size > 0, f"mesh.{axis}", size, "-1, or more than 0")
    fills = [axis for axis, size in c.mesh.items() if size == -1]
    need(len(fills) < 2, "mesh", fills, "one axis of -1 at most")
    for field in positive.split():
        need(0 < value(field) < math.inf, field, value(field), "more than 0")
    for field in not_negative.split():
        need(0 <= value(field) < math.inf, field, value(field), "0 or more")
    for field in shares.split():
        need(0 <= value(field) < 1, field, value(field), "at least 0 and less than 1")
    for field in fractions.split():
        need(0 <= value(field) <= 1, field, value(field), "0 to 1")
    for field, allowed in _CHOICES.items():
        need(value(field) in allowed, field, value(field), "one of " + ", ".join(allowed))
    shape = all(isinstance(layer, tuple) and len(layer) == 3 for layer in m.conv_layers)
    numbers = shape and all(isinstance(n, int) and n > 0 for layer in m.conv_layers for n in layer)
    triples = "(channels, kernel, stride) of each convolution, all more than 0"
    need(bool(m.conv_layers) and numbers, "model.conv_layers", m.conv_layers, triples)
    if errors:
        return
    need(m.width % m.num_heads == 0, "model.width", m.width, f"a multiple of {m.num_heads} heads")
    half = c.compute_dtype == "bfloat16" or m.attention == "xla"
    need(half, "model.attention", m.attention, "'xla', or compute_dtype 'bfloat16' for cuDNN")
    groups = f"a multiple of the {m.pos_conv_groups} groups of the positional convolution"
    need(m.width % m.pos_conv_groups == 0, "model.width", m.width, groups)
    layers = f"at most the {m.num_layers} layers"
    need(m.num_codebooks <= m.num_layers, "model.num_codebooks", m.num_codebooks, layers)
    longer = f"at least min_seconds = {d.min_seconds}"
    need(d.max_seconds >= d.min_seconds, "data.max_seconds", d.max_seconds, longer)


def read_file(path: str, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """A configuration file, changed by flags, as a checked nested dict.

    Args:
      path: A Python file with `get_config()`.
      overrides: Flags as main.py takes them, --config.FIELD=VALUE.

    Returns:
      All fields.

    Raises:
      ValueError: A flag or a field is not what was expected.
    """
    values = runpy.run_path(path)["get_config"]().to_dict()
    for override in overrides:
        name, found, text = override.removeprefix("--config.").partition("=")
        if not override.startswith("--config.") or not found:
            raise ValueError(f"found {override!r}, expected --config.FIELD=VALUE")
        *parents, field = name.split(".")
        part = values
        for parent in parents:
            part = part.setdefault(parent, {})
            if not isinstance(part, dict):
                raise ValueError(f"{override}: config.{name}: unknown field")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        part[field] = text if isinstance(part.get(field), str) else value
    parse(values)
    return values


def _nested(config: ml_collections.ConfigDict, field: str) -> Any:
    for name in field.split("."):
        config = config[name]
    return config
