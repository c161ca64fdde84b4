"""The config.json that spidr's training writes beside its checkpoints tells what shapes do not."""

import json
import shutil

import pytest
from test_fairseq import GOLDEN

from dinosr_jax.inference.model import load
from dinosr_jax.interop import runs
from dinosr_jax.interop.formats import Choices, InteropError, read_checkpoint
from dinosr_jax.interop.spidr import fields_beside


@pytest.fixture
def checkpoint(tmp_path):
    shutil.copy(GOLDEN / "tiny_spidr.pt", tmp_path / "step_3.pt")
    return tmp_path / "step_3.pt"


def beside(checkpoint, values):
    checkpoint.with_name("config.json").write_text(json.dumps(values))


@pytest.mark.parametrize("nested", [True, False])
def test_heads_and_recipe_are_taken_of_it(nested, checkpoint):
    model = {"encoder_num_heads": 4, "encoder_dropout": 0.25, "ema_final_step": 11}
    model |= {"extractor_conv_layer_config": [[32, 10, 5], *[[32, 3, 2]] * 4, *[[32, 2, 2]] * 2]}
    whole = {"run": {}, "model": model, "masking": {"mask_length": 7}}
    beside(checkpoint, whole if nested else model)
    found = read_checkpoint(checkpoint)
    told = read_checkpoint(GOLDEN / "tiny_fairseq.pt").config.model  # by its own cfg
    for field in ("num_heads", "conv_layers", "width", "pos_conv_width", "pos_conv_groups"):
        assert found.config.model[field] == told[field]
    assert found.config.model.dropout == 0.25 and found.config.teacher.decay_steps == 11
    assert found.config.mask.length == (7 if nested else 10)
    assert not any(note.startswith("ASSUMED") for note in found.notes)
    # a person knows better
    assert read_checkpoint(checkpoint, choices=Choices(heads=2)).config.model.num_heads == 2


def test_what_it_leaves_out_has_the_default_of_spidr(checkpoint):
    beside(checkpoint, {"run": {}, "model": {"encoder_embed_dim": 48}})
    assert read_checkpoint(checkpoint).config.model.num_heads == 12


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "data2vec-audio", "codebook_size": 5, "num_attention_heads": 2},
        {"model": {"num_heads": 2, "codebook_size": 5}, "seed": 1},
        {"model": {}},
        [1],
    ],
)
def test_that_of_another_program_is_left_alone(values, checkpoint):
    beside(checkpoint, values)
    assert fields_beside(checkpoint) == {}
    with pytest.raises(InteropError, match="width of 48 is no multiple.*--heads=N"):
        read_checkpoint(checkpoint)


def test_a_contradiction_names_the_tensor_and_damage_the_file(checkpoint):
    beside(checkpoint, {"encoder_num_heads": 4, "encoder_ff_interm_features": 80})
    with pytest.raises(InteropError, match=r"intermediate_dense\.weight: found shape \[96, 48\]"):
        read_checkpoint(checkpoint)
    beside(checkpoint, {"encoder_num_heads": 4, "encoder_layer_norm_first": True})
    with pytest.raises(InteropError, match="layer_norm_first: found True, expected False"):
        read_checkpoint(checkpoint)
    checkpoint.with_name("config.json").write_text("{")
    with pytest.raises(InteropError, match=r"config\.json: not JSON.*beside .*step_3\.pt"):
        read_checkpoint(checkpoint)


def test_what_was_assumed_is_said_of_the_run_too(checkpoint, tmp_path):
    found = read_checkpoint(checkpoint, choices=Choices(heads=4))
    assumed = [note for note in found.notes if note.startswith("ASSUMED")]
    assert len(assumed) == 1 and "strides 5, 2, 2" in assumed[0]
    runs.write_run(found, tmp_path / "run")
    assert load(tmp_path / "run").notes == tuple(assumed)
