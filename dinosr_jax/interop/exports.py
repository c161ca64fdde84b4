"""Checkpoints for other projects: fairseq's, spidr's and s3prl's `.pt`, Hugging Face's folder."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dinosr_jax.config import to_text
from dinosr_jax.interop import (
    fairseq,
    fairseq_files,
    huggingface,
    naming,
    recognisers,
    s3prl,
    spidr,
    tokenizers,
)
from dinosr_jax.interop.formats import Imported, InteropError
from dinosr_jax.interop.huggingface import write_json
from dinosr_jax.interop.runs import written_whole
from dinosr_jax.interop.torch_file.writer import write_torch_file
from dinosr_jax.model.feature_encoder import receptive_field

Kind = Literal["huggingface", "fairseq", "spidr", "s3prl"]
Network = Literal["student", "teacher"]
_OBJECTIVES = {"fairseq": ("dinosr",), "spidr": ("dinosr", "spidr")}  # others: heads stay behind
_PREPROCESSOR = {
    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
    "feature_size": 1,
    "sampling_rate": 16_000,
    "padding_side": "right",
    "padding_value": 0.0,
    "do_normalize": True,
    "return_attention_mask": True,
}


def export(
    imported: Imported, output: Path, *, kind: Kind, model: Network = "student"
) -> list[str]:
    """Writes a checkpoint and its model card.

    `read_checkpoint` reads it back bit for bit, but that for s3prl, which holds the student alone.

    Args:
      imported: Of `runs.read_any`.
      output: Folder to write; must not hold anything.
      kind: Whose format.
      model: huggingface: which network `model.safetensors` holds; the rest is beside it.

    Returns:
      Warnings: what the other project computes otherwise, or cannot do. They are on the card, too.

    Raises:
      InteropError: The folder is not empty, or the network has no place in the format.
      OSError: It cannot be written.
    """
    config, state = imported.config, imported.state
    _check(config, kind, model)
    data = {key: value for key, value in imported.data.items() if key != "metrics"}
    ours = {"config": config.to_json(), "data": json.dumps(data)}
    with written_whole(output) as folder:
        if kind == "huggingface":
            _write_huggingface(imported, folder, model, ours)
        elif kind == "fairseq":
            write_torch_file(folder / "dinosr.pt", _fairseq(imported, ours))
            if config.task == "ctc":
                text = recognisers.dictionary_text(tuple(config.ctc.symbols))
                (folder / "dict.ltr.txt").write_text(text, encoding="utf-8")
        elif kind == "s3prl":
            write_torch_file(folder / "dinosr.pt", s3prl.content(state, config=config))
        else:
            write_torch_file(folder / "dinosr.pt", _spidr(imported, ours))
            write_json(folder / "config.json", spidr.fields_of_config(config))
        of_kind = {"fairseq": fairseq_files, "spidr": spidr, "s3prl": s3prl}
        warnings = of_kind[kind].warnings(config) if kind in of_kind else []
        (folder / "README.md").write_text(_card(imported, kind, model, warnings), encoding="utf-8")
    return warnings


def _check(config: Any, kind: Kind, model: Network) -> None:
    """Refuses a network that has no place in a format."""
    recogniser, objective = config.task == "ctc", config.objective
    if config.model.front_end != "conv":
        raise InteropError(
            f"config.model.front_end is {config.model.front_end!r}: {kind} has convolutions "
            "only; expected a network with 'conv'"
        )
    if not recogniser and objective not in _OBJECTIVES.get(kind, (objective,)):
        raise InteropError(
            f"config.objective is {objective!r}, which {kind} does not have; expected "
            f"{' or '.join(_OBJECTIVES[kind])}. --format=huggingface and s3prl hold the network "
            "without its heads"
        )
    if recogniser and kind in ("spidr", "s3prl"):
        raise InteropError(f"{kind} has no recogniser; expected --format=huggingface or fairseq")
    if recogniser and model == "teacher":
        raise InteropError("a fine-tuned network has no teacher; expected --model=student")


def _fairseq(imported: Imported, ours: dict[str, str]) -> dict[str, Any]:
    state, config = imported.state, imported.config
    if config.task == "ctc":
        model = fairseq.from_state(state, config=config, naming=recognisers.fairseq_place)
        cfg, criterion = recognisers.fairseq_fields(config), "CtcCriterion"
    else:
        tensors = fairseq.from_state(state, config=config)
        model = fairseq_files.with_teacher(tensors, config=config)
        cfg, criterion = fairseq_files.network(config), "ModelCriterion"
    whole = fairseq_files.around(cfg, imported.step, criterion=criterion)
    whole["extra_state"]["dinosr_jax"] = ours
    return whole | {"model": model}


def _spidr(imported: Imported, ours: dict[str, str]) -> dict[str, Any]:
    shared = imported.config.teacher.scope == "encoder"
    places = naming.spidr_of_shared_teacher if shared else naming.spidr
    model = fairseq.from_state(imported.state, config=imported.config, naming=places)
    beside = {k: model.pop(k) for k in list(model) if k.startswith("teacher.feature_")}
    if not imported.config.model.qkv_bias:
        model = {k: value for k, value in model.items() if not k.endswith("attention.qkv.bias")}
    model["current_step"] = np.asarray([imported.step], np.int64)
    return {"model": model, "dinosr_jax_teacher": beside, "dinosr_jax": ours}


def _write_huggingface(
    imported: Imported, folder: Path, model: Network, ours: dict[str, str]
) -> None:
    """Data2VecAudioModel with the rest beside it, or Data2VecAudioForCTC with its tokenizer."""
    from safetensors.numpy import save_file

    state, config = imported.state, imported.config
    fields, preprocessor = huggingface.fields_of_config(config), _PREPROCESSOR
    if config.task == "ctc":
        symbols = tuple(config.ctc.symbols)
        main = fairseq.from_state(state, config=config, naming=recognisers.huggingface_place)
        beside, model = {}, "recogniser"
        fields |= recognisers.huggingface_fields(symbols)
        preprocessor = _PREPROCESSOR | {"processor_class": "Wav2Vec2Processor"}
        tokenizers.write(folder, symbols)
    else:
        beside, main = fairseq.from_state(state, config=config), {}
        full = config.teacher.scope == "full"
        for entry in fairseq.student_entries(config):
            source = huggingface.in_main_file(entry.name, teacher=model == "teacher", full=full)
            if source is not None:
                main[naming.huggingface(entry.name)] = beside.pop(source)
    save_file(main, folder / "model.safetensors", metadata={"format": "pt"})
    metadata = ours | {"step": str(imported.step), "model": model}
    save_file(beside, folder / huggingface.SIDE_FILE, metadata=metadata)
    write_json(folder / "config.json", fields)
    write_json(folder / "preprocessor_config.json", preprocessor)


def _card(imported: Imported, kind: Kind, model: Network, warnings: list[str]) -> str:
    """The model card, in Markdown."""
    shown = ""
    for part, record in sorted(imported.data.get("metrics", {}).items()):
        rows = "".join(f"- {name}: {value}\n" for name, value in record.items())
        shown += f"\n### {part.capitalize()}\n\n{rows}"
    seen = imported.data.get("origin") or imported.data.get("fingerprint") or "not known"
    c = imported.config
    rate = f"{16_000 / receptive_field(c.model.conv_layers)[1]:.5g} frames a second"
    holds = f"`model.safetensors` holds the {model}.\n" if kind == "huggingface" else ""
    holds = "`dinosr.pt` holds the student, without its heads.\n" if kind == "s3prl" else holds
    last = f"codebooks: {c.model.num_codebooks} of {c.model.codebook_size}, on the top layers"
    if imported.state.codebook is None:
        last = f"targets: mean of the top {c.model.num_codebooks} layers, without codebooks"
    kind_of, header = "Self-supervised speech representations", ""
    if c.task == "ctc":
        holds, kind_of = "", "A speech recogniser, fine-tuned with CTC from representations"
        last = f"symbols: `{' '.join(c.ctc.symbols)}`{_error_rates(imported)}"
        header = "pipeline_tag: automatic-speech-recognition\nmetrics: [wer]\n"
        header += "library_name: transformers\n" if kind == "huggingface" else ""
    return f"""---
{header}tags: [speech, self-supervised, dinosr]
---
# DinoSR, {c.model.num_layers} layers of width {c.model.width}

{kind_of} (Liu et al., NeurIPS 2023), written by dinosr_jax for {kind}.
{holds}Input: 16 kHz mono, each utterance normalised to mean 0 and variance 1; {rate}.

- objective: {c.objective}
- updates: {imported.step}
- training data: {c.data.dataset} {c.data.train_split} (identity: {seen})
- {last}
{"".join(f"- **warning**: {text}" + chr(10) for text in warnings)}
## Last metrics

{shown.strip() or "none recorded"}

## Configuration

```json
{to_text(c)}
```
"""


def _error_rates(imported: Imported) -> str:
    """A line of the card: those of this checkpoint on held-out speech, where they were measured."""
    measured, c = imported.data.get("metrics", {}).get("held out", {}), imported.config
    words = tokenizers.BOUNDARY in c.ctc.symbols
    names = {"eval_wer": "WER", "eval_cer": "CER"} if words else {"eval_wer": "PER"}
    rates = [f"{n} {measured[field]:.2%}" for field, n in names.items() if field in measured]
    count = measured.get("eval_num_utterances", 0)
    of = f"{count:.0f} utterances of {c.data.eval_split}, best path"
    return f"\n- error rates: {', '.join(rates)} ({of})" if rates else ""
