"""What a checkpoint of fairseq holds around its parameters, for fairseq's own loaders.

They are `checkpoint_utils.load_model_ensemble_and_task`, fine-tuning with `model.w2v_path`, and the
plug-in with DinoSR's model. All of them look up more names than they use.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from dinosr_jax.interop import fairseq

# Fine-tuning replaces these fields of a pre-trained network, but only where they are there.
_OF_FINETUNING = {
    "dropout_input": 0.0,
    "dropout_features": 0.0,
    "feature_grad_mult": 1.0,
    "mask_selection": "static",
    "mask_other": 0.0,
    "no_mask_overlap": False,
    "mask_channel_prob": 0.0,
    "mask_channel_length": 10,
    "mask_channel_before": False,
    "mask_channel_selection": "static",
    "mask_channel_other": 0.0,
    "no_mask_channel_overlap": False,
}
_UNUSED = re.compile(r"_?pre_encoder")
# A teacher that is an average of the whole model has these, too, and never reads them.
_UNUSED_BY_TEACHER = re.compile(r"_ema\.(_codebook|heads\.|mask_emb$|_?pre_encoder)")


def network(config: Any) -> dict[str, Any]:
    """The `cfg` of a pre-trained network, as plain values."""
    # 'data' is a folder that the loaders fill in
    task = {"_name": "audio_pretraining", "data": "", "normalize": True, "sample_rate": 16_000}
    return {
        "task": task,
        "model": _OF_FINETUNING | fairseq.fields_of_config(config),
        "criterion": {"_name": "model"},
        "lr_scheduler": {},
    }


def around(cfg: dict[str, Any], step: int, *, criterion: str) -> dict[str, Any]:
    """All of a checkpoint but its `model`, as plain values.

    `cfg` is that of `network` or of a recogniser, `step` the finished updates, `criterion` the name
    of fairseq's class. The step is in the history of the optimizer; without it, and without the
    place in the data, the loaders take the file for one of the first versions, and fail.
    """
    last = {"criterion_name": criterion, "optimizer_name": "FairseqAdam"}
    last |= {"lr_scheduler_state": {}, "num_updates": step}
    place = {"epoch": 1, "iterations_in_epoch": 0}
    return {
        "args": None,
        "cfg": cfg,
        "optimizer_history": [last],
        "extra_state": {"train_iterator": place},
    }


def finished_updates(rest: Mapping[str, Any]) -> tuple[str, int | None]:
    """The number of updates of a checkpoint, by all of it but its `model`; None where it has none.

    Before it the entry that is of no other use than this, or ''.
    """
    history = rest.get("optimizer_history")
    last = history[-1] if isinstance(history, list) and history else {}
    places = {"optimizer_history": last, "extra_state": rest.get("extra_state"), "": rest}
    for name, place in places.items():
        value = place.get("num_updates") if isinstance(place, dict) else None
        if _is_count(value):
            return name or "num_updates", value
    adam = rest.get("last_optimizer_state")
    moments = adam.get("state") if isinstance(adam, dict) else None
    first = next(iter(moments.values()), None) if isinstance(moments, dict) else None
    value = first.get("step") if isinstance(first, dict) else None
    return "", value if _is_count(value) else None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def with_teacher(tensors: Mapping[str, np.ndarray], *, config: Any) -> dict[str, Any]:
    """The `model` of a pre-trained network: its tensors, those of the teacher in `_ema`.

    Of scope 'full' the teacher is an average of the whole model, in which the plug-in expects the
    codebooks as well.
    """
    student = {name: value for name, value in tensors.items() if not name.startswith("_ema.")}
    teacher = {
        name.removeprefix("_ema."): value for name, value in tensors.items() if name not in student
    }
    if config.teacher.scope == "full":
        teacher |= {n: value for n, value in student.items() if n.startswith("_codebook")}
    return student | {"_ema": teacher}


def used_tensors(
    tensors: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Tensors of a pre-trained network that it reads, and the names of the others."""
    unused = [n for n in tensors if _UNUSED.match(n) or _UNUSED_BY_TEACHER.match(n)]
    return {name: value for name, value in tensors.items() if name not in unused}, unused


def warnings(config: Any) -> list[str]:
    """What fairseq cannot do with an exported network."""
    layers, codebooks = config.model.num_layers, config.model.num_codebooks
    if config.task == "ctc" or config.teacher.scope == "encoder" or codebooks == layers:
        return []
    return [
        "fairseq cannot train on from it: where the teacher has its own front end (teacher.scope "
        f"'full') its DinoSR takes targets of all {layers} layers, and there are {codebooks} "
        "codebooks; its features are right"
    ]
