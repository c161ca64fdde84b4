"""The config.json that spidr's training writes beside its checkpoints tells what shapes do not."""

import json
import shutil

import numpy as np
import pytest

from dinosr_jax.config import parse
from dinosr_jax.inference.pretrained import load
from dinosr_jax.interop import exports, runs
from dinosr_jax.interop.formats import Choices, InteropError, read_checkpoint
from dinosr_jax.interop.spidr import fields_beside, fields_of_config
from dinosr_jax.interop.torch_file.reader import TorchFile
from dinosr_jax.interop.torch_file.writer import write_torch_file
from dinosr_jax.recipes import published_recipe
from tests.interop.test_fairseq import GOLDEN
from tests.random_states import random_network, same_network
from tests.tiny_runs import tiny_config


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
    content = read_checkpoint(GOLDEN / "tiny_fairseq.pt").config.model  # by its own cfg
    for field in ("num_heads", "conv_layers", "width", "pos_conv_width", "pos_conv_groups"):
        assert found.config.model[field] == content[field]
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
    assert len(assumed) == 2 and "strides 5, 2, 2" in assumed[0]
    assert "objective 'dinosr'" in assumed[1] and "--objective=spidr" in assumed[1]
    runs.write_run(found, tmp_path / "run")
    assert load(tmp_path / "run").notes == tuple(assumed)


PUBLISHED = {
    "extractor_mode": "layer_norm", "extractor_conv_bias": False,
    "extractor_conv_layer_config": [[512, 10, 5], *[[512, 3, 2]] * 4, *[[512, 2, 2]] * 2],
    "encoder_embed_dim": 768, "encoder_pos_conv_kernel": 95, "encoder_pos_conv_groups": 16,
    "encoder_pos_conv_depth": 5, "encoder_num_layers": 12, "encoder_num_heads": 12,
    "encoder_attention_dropout": 0.1, "encoder_ff_interm_features": 3072,
    "encoder_ff_interm_dropout": 0.0, "encoder_dropout": 0.1, "encoder_layer_norm_first": False,
    "encoder_layer_drop": 0.05, "encoder_qkv_bias": True, "codebook_size": 256,
    "codebook_decay": 0.9, "num_codebooks": 8, "ema_start_decay": 0.999,
    "ema_final_decay": 0.9999, "ema_final_step": 30000,
}  # fmt: skip
MASKING = {"mask_prob": 0.8, "mask_length": 10}
TINY = PUBLISHED | {
    "extractor_conv_layer_config": [[16, 10, 5], *[[16, 3, 2]] * 4, *[[16, 2, 2]] * 2],
    "encoder_embed_dim": 32, "encoder_pos_conv_kernel": 15, "encoder_pos_conv_groups": 4,
    "encoder_pos_conv_depth": 3, "encoder_num_layers": 3, "encoder_num_heads": 4,
    "encoder_ff_interm_features": 64, "codebook_size": 16, "num_codebooks": 2,
    "ema_final_step": 100,
}  # fmt: skip
# what is changed here -> how spidr says it
NETWORKS = [
    ({}, {}),
    ({"model.num_heads": 8}, {"encoder_num_heads": 8}),
    (
        {"model.width": 48, "model.num_heads": 3, "model.num_layers": 2, "model.ffn_dim": 40},
        {"encoder_embed_dim": 48, "encoder_num_heads": 3, "encoder_num_layers": 2,
         "encoder_ff_interm_features": 40},
    ),
    (
        {"model.conv_layers": ((24, 8, 4), (16, 4, 3), (20, 3, 2)), "model.num_codebooks": 3},
        {"extractor_conv_layer_config": [[24, 8, 4], [16, 4, 3], [20, 3, 2]], "num_codebooks": 3},
    ),
    (
        {"model.pos_conv_depth": 2, "model.pos_conv_width": 8, "model.pos_conv_groups": 1,
         "model.codebook_size": 5, "model.num_codebooks": 1},
        {"encoder_pos_conv_depth": 2, "encoder_pos_conv_kernel": 8, "encoder_pos_conv_groups": 1,
         "codebook_size": 5, "num_codebooks": 1},
    ),
    (
        {"model.dropout": 0.25, "model.attention_dropout": 0.0, "model.activation_dropout": 0.5,
         "model.layerdrop": 0.0, "teacher.decay": 0.5, "teacher.end_decay": 0.75,
         "teacher.decay_steps": 3, "teacher.freeze_step": 11},
        {"encoder_dropout": 0.25, "encoder_attention_dropout": 0.0,
         "encoder_ff_interm_dropout": 0.5, "encoder_layer_drop": 0.0, "ema_start_decay": 0.5,
         "ema_final_decay": 0.75, "ema_final_step": 3, "freeze_step": 11},
    ),
]  # fmt: skip


def tiny_network(changes):
    return random_network(tiny_config(**changes))


@pytest.mark.parametrize(("changes", "fields"), NETWORKS)
def test_an_export_tells_spidr_its_network(changes, fields, tmp_path):
    """Every field of it: spidr takes its defaults for those that are not there."""
    found = tiny_network(changes)
    exports.export(found, tmp_path / "out", kind="spidr")
    content = json.loads((tmp_path / "out/config.json").read_text())
    expected = TINY | {"freeze_step": found.config.teacher.freeze_step} | fields
    assert content == {"model": expected, "masking": MASKING}


def test_the_published_network_is_that_of_spidr_but_for_its_biases():
    """Whose fields have these defaults."""
    content = json.loads(json.dumps(fields_of_config(parse(published_recipe()))))["model"]
    assert content.pop("freeze_step") == published_recipe().teacher.freeze_step
    assert content == PUBLISHED


@pytest.mark.parametrize(("changes", "fields"), NETWORKS)
def test_an_export_comes_back_by_what_is_beside_it(changes, fields, tmp_path):
    """Without what is ours in the file; nobody has to say the heads."""
    found = tiny_network(changes)
    exports.export(found, tmp_path / "out", kind="spidr")
    same_network(found, read_checkpoint(tmp_path / "out"))
    file = tmp_path / "out/dinosr.pt"
    with TorchFile(file) as opened:
        assert opened.content.keys() == {"model", "dinosr_jax_teacher", "dinosr_jax"}
        model = {name: np.array(opened.array(t)) for name, t in opened.content["model"].items()}
    write_torch_file(file, {"model": model})
    for path in (file, tmp_path / "out"):
        back = read_checkpoint(path)
        same_network(found, back)
        assert back.source == "spidr" and back.step == 7
        for part in ("model", "mask", "codebook", "teacher"):
            assert back.config[part] == found.config[part]
        assert not any(note.startswith("ASSUMED") for note in back.notes)
    (tmp_path / "out/config.json").unlink()
    with pytest.raises(InteropError, match="--heads=N"):
        read_checkpoint(file)


def test_a_folder_with_another_projects_weights_is_theirs(tmp_path):
    """Whatever else lies in it."""
    exports.export(tiny_network({}), tmp_path / "out", kind="huggingface")
    shutil.copy(GOLDEN / "tiny_spidr.pt", tmp_path / "out/a.pt")
    assert read_checkpoint(tmp_path / "out").source == "huggingface"
    (tmp_path / "out/model.safetensors").unlink()
    with pytest.raises(InteropError):  # of width 48, no multiple of 64, and nobody says its heads
        read_checkpoint(tmp_path / "out")
    shutil.copy(GOLDEN / "tiny_spidr.pt", tmp_path / "out/b.pt")
    with pytest.raises(InteropError, match="out: no checkpoint: .* one .pt file"):
        read_checkpoint(tmp_path / "out")


@pytest.mark.parametrize("scope", ["encoder", "full"])
def test_a_teacher_with_its_own_front_end_is_another_there(scope, tmp_path):
    warnings = exports.export(
        tiny_network({"teacher.scope": scope}), tmp_path / "out", kind="spidr"
    )
    card = (tmp_path / "out/README.md").read_text()
    if scope == "encoder":
        assert warnings == [] and "warning" not in card
    else:
        assert len(warnings) == 1 and warnings[0] in card
        assert "front end" in warnings[0] and "a third of the codes" in warnings[0]
        assert "student and heads are exact" in warnings[0]


SPIDR = {"objective": "spidr", "model.layerdrop": 0.0, "teacher.schedule": "exponential"}


def without_ours(folder):
    """Takes out of an exported file what is ours; returns its tensors by name."""
    with TorchFile(folder / "dinosr.pt") as opened:
        model = {name: np.array(opened.array(t)) for name, t in opened.content["model"].items()}
    write_torch_file(folder / "dinosr.pt", {"model": model})
    return model


@pytest.mark.parametrize("biases", [True, False])
def test_an_export_of_its_successor_comes_back(biases, tmp_path):
    """By config.json alone: the tensors have the names of DinoSR's."""
    found = tiny_network(SPIDR | {"teacher.timescale_steps": 123, "model.qkv_bias": biases})
    if not biases:
        for params in (found.state.params, found.state.teacher_params):
            for name in ("query", "key", "value"):
                params["encoder"]["layers"]["attention"][name]["bias"][:] = 0
    assert exports.export(found, tmp_path / "out", kind="spidr") == []
    same_network(found, read_checkpoint(tmp_path / "out"))
    content = json.loads((tmp_path / "out/config.json").read_text())["model"]
    mine = {"encoder_layer_drop": 0.0, "encoder_qkv_bias": biases, "freeze_step": 200_001}
    mine |= {"ema_timescale": 123, "ema_threshold": 1e-7}
    assert content == TINY | mine
    names = without_ours(tmp_path / "out")
    assert any(name.endswith("qkv.bias") for name in names) == biases
    back = read_checkpoint(tmp_path / "out")
    same_network(found, back)
    assert not any(note.startswith("ASSUMED") for note in back.notes)
    for part in ("objective", "model", "teacher"):
        assert back.config[part] == found.config[part], part
    assert "objective: spidr" in (tmp_path / "out/README.md").read_text()


def test_its_successor_is_known_by_what_its_training_writes(checkpoint):
    """A whole config.json, in which the timescale is a number with a point."""
    model = {"encoder_num_heads": 4, "ema_timescale": 150.0, "encoder_layer_drop": 0.1}
    beside(checkpoint, {"run": {"model_type": "spidr"}, "model": model})
    found = read_checkpoint(checkpoint)
    assert found.config.objective == "spidr" and found.config.model.layerdrop == 0.0
    assert "model.layerdrop: 0.1 there, 0 here" in found.notes
    assert found.config.teacher.schedule == "exponential"
    assert found.config.teacher.timescale_steps == 150
    beside(checkpoint, {"run": {"model_type": "spidr"}, "model": {"encoder_num_heads": 4}})
    assert read_checkpoint(checkpoint).config.teacher.timescale_steps == 20_000
    beside(checkpoint, {"run": {"model_type": "dinosr"}, "model": {"encoder_num_heads": 4}})
    assert read_checkpoint(checkpoint).config.objective == "dinosr"
    for wrong in ("fast", 1.5, -2, None):
        beside(checkpoint, {"model": model | {"ema_timescale": wrong}})
        with pytest.raises(InteropError, match=f"config.json: ema_timescale: found {wrong!r}, exp"):
            read_checkpoint(checkpoint)


def test_where_nothing_says_the_objective_a_person_does(checkpoint):
    found = read_checkpoint(checkpoint, choices=Choices(heads=4, objective="spidr"))
    assert found.config.objective == "spidr"
    assert not any("objective" in note for note in found.notes)
    beside(checkpoint, {"model": {"encoder_num_heads": 4}})
    with pytest.raises(InteropError, match="--objective: found 'spidr', .*objective 'dinosr'"):
        read_checkpoint(checkpoint, choices=Choices(objective="spidr"))
    with pytest.raises(InteropError, match="--objective: found 'data2vec', .*objective 'dinosr'"):
        read_checkpoint(GOLDEN / "tiny_fairseq.pt", choices=Choices(objective="data2vec"))


def test_another_schedule_of_the_teacher_is_said(tmp_path):
    found = exports.export(
        tiny_network(SPIDR | {"teacher.schedule": "linear"}), tmp_path / "a", kind="spidr"
    )
    assert len(found) == 1 and "exponential, not linear (teacher.schedule)" in found[0]
    assert found[0] in (tmp_path / "a/README.md").read_text()
    found = exports.export(
        tiny_network({"teacher.schedule": "exponential"}), tmp_path / "b", kind="spidr"
    )
    assert len(found) == 1 and "linear, not exponential (teacher.schedule)" in found[0]


@pytest.mark.parametrize(
    ("objective", "kind"), [("spidr", "fairseq"), ("data2vec", "fairseq"), ("data2vec", "spidr")]
)
def test_a_project_without_the_objective_gets_no_export(objective, kind, tmp_path):
    network = tiny_network(SPIDR | {"objective": objective})
    with pytest.raises(InteropError, match=f"config.objective is '{objective}', which {kind} does"):
        exports.export(network, tmp_path / "out", kind=kind)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("objective", ["spidr", "data2vec"])
def test_the_network_without_heads_is_exported_of_any_objective(objective, tmp_path):
    found = tiny_network(SPIDR | {"objective": objective})
    exports.export(found, tmp_path / "out", kind="huggingface")
    back = read_checkpoint(tmp_path / "out")
    same_network(found, back)
    assert back.config.objective == objective
    exports.export(found, tmp_path / "s3prl", kind="s3prl")
    card = (tmp_path / "s3prl/README.md").read_text()
    books = "codebooks: 2 of 16" if objective == "spidr" else "targets: mean of the top 2 layers"
    assert books in card


def test_a_student_alone_is_trained_on_with_the_objective_that_is_asked_for(tmp_path):
    exports.export(tiny_network({}), tmp_path / "out", kind="huggingface")
    (tmp_path / "out/dinosr.safetensors").unlink()
    for objective in ("spidr", "data2vec"):
        choices = Choices(num_codebooks=3, codebook_size=5, objective=objective)
        found = read_checkpoint(tmp_path / "out", choices=choices)
        assert found.config.objective == objective
        kernel = found.state.params["heads"]["kernel"]
        assert kernel.shape == ((3, 32, 5) if objective == "spidr" else (1, 32, 32))
        assert (found.state.codebook is None) == (objective == "data2vec")
