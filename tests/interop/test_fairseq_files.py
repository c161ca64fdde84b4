"""What fairseq's loaders look up in a checkpoint: written down here, and held to.

`checkpoint_utils.load_model_ensemble_and_task` and `Wav2VecEncoder` (`model.w2v_path`) of fairseq,
and the model of DinoSR's plug-in, which loads its tensors strictly.
"""

import ast
import os
import stat

import numpy as np
import pytest
from click.testing import CliRunner

from dinosr_jax.cli import cli
from dinosr_jax.interop import exports, fairseq
from dinosr_jax.interop.formats import InteropError, read_checkpoint
from dinosr_jax.interop.torch_file.reader import Tensor, TorchFile
from dinosr_jax.interop.torch_file.writer import write_torch_file
from dinosr_jax.recipes import published_recipe
from tests.random_states import random_network, same_network
from tests.recogniser_runs import recogniser_config
from tests.tiny_runs import tiny_config

TASK = {"_name": "audio_pretraining", "data": "", "normalize": True, "sample_rate": 16000}
FIXED = {
    "_name": "dinosr", "extractor_mode": "layer_norm", "conv_bias": False, "discrete": True,
    "layer_norm_first": False, "instance_norm_target_layer": True,
    # what fine-tuning overrides, where it is there
    "dropout_input": 0.0, "dropout_features": 0.0, "feature_grad_mult": 1.0,
    "mask_selection": "static", "mask_other": 0.0, "no_mask_overlap": False,
    "mask_channel_prob": 0.0, "mask_channel_length": 10, "mask_channel_before": False,
    "mask_channel_selection": "static", "mask_channel_other": 0.0,
    "no_mask_channel_overlap": False, "require_same_masks": True,
}  # fmt: skip
PUBLISHED = FIXED | {
    "encoder_layers": 12, "encoder_embed_dim": 768, "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12, "conv_pos": 95, "pos_conv_depth": 5, "conv_pos_groups": 16,
    "average_top_k_layers": 8, "codebook_size": 256, "dropout": 0.1, "attention_dropout": 0.1,
    "activation_dropout": 0.0, "encoder_layerdrop": 0.05, "mask_prob": 0.8, "mask_length": 10,
    "codebook_init_decay": 0.9, "codebook_end_decay": 0.9, "codebook_end_decay_step": 0,
    "ema_decay": 0.999, "ema_end_decay": 0.9999, "ema_anneal_end_step": 30000,
}  # fmt: skip
TINY = PUBLISHED | {
    "encoder_layers": 3, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 64,
    "encoder_attention_heads": 4, "conv_pos": 15, "pos_conv_depth": 3, "conv_pos_groups": 4,
    "average_top_k_layers": 2, "codebook_size": 16, "ema_anneal_end_step": 100,
}  # fmt: skip
CONVOLUTIONS = [(10, 5)] + [(3, 2)] * 4 + [(2, 2)] * 2


def arrays(file, value):
    """A content with arrays in the place of its tensors."""
    if isinstance(value, dict):
        return {name: arrays(file, item) for name, item in value.items()}
    return file.array(value) if isinstance(value, Tensor) else value


def read(path):
    with TorchFile(path) as file:
        return arrays(file, file.content)


def exported(found, folder):
    exports.export(found, folder, kind="fairseq")
    return read(folder / "dinosr.pt")


def named(name, *shape):
    """A module's weight and its bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def encoder_of(fields):
    width, inner = fields["encoder_embed_dim"], fields["encoder_ffn_embed_dim"]
    depth, found = fields["pos_conv_depth"], named("layer_norm", width)
    kernel = max(3, fields["conv_pos"] // depth)
    for i in range(depth):
        found |= named(f"pos_conv.{i}.0", width, width // fields["conv_pos_groups"], kernel)
    for i in range(fields["encoder_layers"]):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            found |= named(f"layers.{i}.self_attn.{name}", width, width)
        found |= named(f"layers.{i}.self_attn_layer_norm", width)
        found |= named(f"layers.{i}.fc1", inner, width) | named(f"layers.{i}.fc2", width, inner)
        found |= named(f"layers.{i}.final_layer_norm", width)
    return found


def front_end_of(fields):
    found, inputs = {}, 1
    layers = ast.literal_eval(fields["conv_feature_layers"])
    for i, (channels, kernel, _) in enumerate(layers):
        name, inputs_before, inputs = f"feature_extractor.conv_layers.{i}", inputs, channels
        found[f"{name}.0.weight"] = (channels, inputs_before, kernel)
        found |= named(f"{name}.2.1", channels)
    found |= named("post_extract_proj", fields["encoder_embed_dim"], inputs)
    return found | named("layer_norm", inputs)


def student_of(fields):
    encoder = {f"encoder.{name}": shape for name, shape in encoder_of(fields).items()}
    return {"mask_emb": (fields["encoder_embed_dim"],)} | front_end_of(fields) | encoder


def model_of(fields):
    """Shapes of the state of the plug-in's model, after its teacher is made."""
    found = student_of(fields)
    width, size = fields["encoder_embed_dim"], fields["codebook_size"]
    codebooks = {}
    for k in range(fields["average_top_k_layers"]):
        found |= named(f"heads.{k}", size, width)
        codebooks |= {f"_codebook{k}": (size, width), f"_codebook_cnts{k}": (size,)}
    teacher = encoder_of(fields)
    if not fields["ema_transformer_only"]:  # of the whole model, which asks for its codebooks
        teacher = {n: s for n, s in student_of(fields).items() if n != "mask_emb"} | codebooks
    return found | codebooks | {"_ema": teacher}


def shapes(model):
    return {n: shapes(v) if isinstance(v, dict) else v.shape for n, v in model.items()}


def assert_plain(value):
    """Of the types of a literal: nothing that a loader without this project cannot read."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            assert_plain(item)
    else:
        assert value is None or type(value) in (bool, int, float, str), value


def assert_equal_with_types(found, expected):
    assert found == expected
    for name, value in expected.items():
        assert type(found[name]) is type(value), name


def check_around(content, *, step, criterion):
    assert content.keys() == {"args", "cfg", "model", "optimizer_history", "extra_state"}
    assert content["args"] is None
    history = {"criterion_name": criterion, "optimizer_name": "FairseqAdam"}
    history |= {"lr_scheduler_state": {}, "num_updates": step}
    assert content["optimizer_history"] == [history]
    place = {"epoch": 1, "iterations_in_epoch": 0}
    assert content["extra_state"]["train_iterator"] == place
    assert_plain({name: value for name, value in content.items() if name != "model"})


def check_pretraining(content, fields, *, step):
    check_around(content, step=step, criterion="ModelCriterion")
    cfg = content["cfg"]
    assert cfg.keys() == {"task", "model", "criterion", "lr_scheduler"}
    assert_equal_with_types(cfg["task"], TASK)
    assert cfg["criterion"] == {"_name": "model"} and cfg["lr_scheduler"] == {}
    figures = {name: cfg["model"][name] for name in fields}
    assert_equal_with_types(figures, fields)
    assert shapes(content["model"]) == model_of(fields)


def told_by(fields, *, channels, scope):
    layers = repr([(channels, *layer) for layer in CONVOLUTIONS])
    shared = scope == "encoder"
    teacher = {"ema_transformer_only": shared, "ema_layers_only": shared}
    return fields | {"conv_feature_layers": layers} | teacher


@pytest.mark.parametrize("scope", ["encoder", "full"])
def test_a_small_network(scope, tmp_path):
    found = random_network(tiny_config(**{"teacher.scope": scope}))
    content = exported(found, tmp_path / "out")
    check_pretraining(content, told_by(TINY, channels=16, scope=scope), step=7)
    # the teacher's are its own, the codebooks in it are those of the model
    model = content["model"]
    prefix = "encoder." if scope == "full" else ""
    assert np.any(model["_ema"][f"{prefix}layers.0.fc1.bias"] != model["encoder.layers.0.fc1.bias"])
    if scope == "full":
        np.testing.assert_array_equal(model["_ema"]["_codebook1"], model["_codebook1"])
        np.testing.assert_array_equal(model["_ema"]["_codebook_cnts0"], model["_codebook_cnts0"])


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["encoder", "full"])
def test_the_published_network(scope, tmp_path, monkeypatch):
    """Not written, since it has 180 million numbers."""
    config = published_recipe()
    config.teacher.scope = scope
    found = random_network(config, step=400_000)
    contents = []
    monkeypatch.setattr(exports, "write_torch_file", lambda path, content: contents.append(content))
    exports.export(found, tmp_path / "out", kind="fairseq")
    fields = told_by(PUBLISHED, channels=512, scope=scope)
    check_pretraining(contents[0], fields, step=400_000)


def test_another_small_network(tmp_path):
    convolutions = ((24, 8, 4), (16, 4, 3), (20, 3, 2))
    changes = {
        "model.width": 48, "model.num_layers": 2, "model.num_heads": 3, "model.ffn_dim": 40,
        "model.pos_conv_depth": 2, "model.pos_conv_width": 8, "model.pos_conv_groups": 1,
        "model.num_codebooks": 1, "model.codebook_size": 5, "model.dropout": 0.25,
        "mask.length": 4, "mask.prob": 0.5, "codebook.decay": 0.75, "teacher.decay": 0.5,
    }  # fmt: skip
    config = tiny_config(**changes | {"model.conv_layers": convolutions})
    fields = told_by(TINY, channels=16, scope="encoder") | {
        "encoder_layers": 2, "encoder_embed_dim": 48, "encoder_ffn_embed_dim": 40,
        "encoder_attention_heads": 3, "conv_pos": 8, "pos_conv_depth": 2, "conv_pos_groups": 1,
        "average_top_k_layers": 1, "codebook_size": 5, "dropout": 0.25, "mask_length": 4,
        "mask_prob": 0.5, "codebook_init_decay": 0.75, "ema_decay": 0.5,
        "conv_feature_layers": repr(list(convolutions)),
    }  # fmt: skip
    check_pretraining(exported(random_network(config), tmp_path / "out"), fields, step=7)


def test_a_recogniser(tmp_path):
    config = recogniser_config(**{"ctc.channel_mask_prob": 0.25, "mask.prob": 0.5})
    content = exported(random_network(config), tmp_path / "out")
    check_around(content, step=7, criterion="CtcCriterion")
    task = {"_name": "audio_finetuning", "data": "", "labels": "ltr", "normalize": True}
    assert_equal_with_types(content["cfg"]["task"], task)
    outer = content["cfg"]["model"]
    figures = {
        "_name": "wav2vec_ctc", "normalize": True, "apply_mask": True, "mask_prob": 0.5,
        "mask_length": 10, "mask_channel_prob": 0.25, "mask_channel_length": 64,
        "dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.0, "layerdrop": 0.05,
    }  # fmt: skip
    assert_equal_with_types({name: outer[name] for name in figures}, figures)
    inner = outer["w2v_args"]
    assert inner.keys() == {"task", "model", "criterion", "lr_scheduler"}
    assert_equal_with_types(inner["task"], TASK)
    fields = told_by(TINY, channels=16, scope="encoder") | {
        "discrete": False,  # else the plug-in asks for codebooks
        "mask_prob": 0.5, "mask_channel_prob": 0.25, "mask_channel_length": 64,
    }  # fmt: skip
    assert_equal_with_types({name: inner["model"][name] for name in fields}, fields)
    expected = {f"w2v_encoder.w2v_model.{name}": s for name, s in student_of(fields).items()}
    assert shapes(content["model"]) == expected | named("w2v_encoder.proj", 32, 32)


@pytest.mark.parametrize("codebooks", [2, 3])
def test_a_teacher_with_its_own_front_end_is_trained_on_there_with_a_codebook_a_layer(
    codebooks, tmp_path
):
    changes = {"teacher.scope": "full", "model.num_codebooks": codebooks}
    found = random_network(tiny_config(**changes))
    warnings = exports.export(found, tmp_path / "out", kind="fairseq")
    card = (tmp_path / "out/README.md").read_text()
    if codebooks == 3:
        assert warnings == [] and "warning" not in card
    else:
        assert len(warnings) == 1 and warnings[0] in card
        assert "cannot train on" in warnings[0] and "3 layers" in warnings[0]


def test_the_command_says_the_warnings(tmp_path):
    found = random_network(tiny_config(**{"teacher.scope": "full"}))
    exports.export(found, tmp_path / "a", kind="huggingface")
    for kind, text in (("fairseq", "cannot train on"), ("spidr", "codes of the teacher are other")):
        out = tmp_path / kind
        done = CliRunner().invoke(
            cli, ["export", f"{tmp_path}/a", f"--format={kind}", f"--output={out}"]
        )
        assert done.exit_code == 0 and "WARNING: " in done.output and text in done.output
        same_network(found, read_checkpoint(out))


def saved_before(found, *, ours=True):
    """As this project exported before it wrote what fairseq's loaders look up."""
    tensors = fairseq.from_state(found.state, config=found.config)
    teacher = {n.removeprefix("_ema."): v for n, v in tensors.items() if n.startswith("_ema.")}
    student = {n: v for n, v in tensors.items() if not n.startswith("_ema.")}
    fields = fairseq.fields_of_config(found.config)
    del fields["ema_layers_only"]
    about = {"config": found.config.to_json(), "data": "{}"}
    return {
        "args": None,
        "optimizer_history": [{"num_updates": found.step}],
        "extra_state": {"dinosr_jax": about} if ours else {},
        "cfg": {"model": fields},
        "model": student | {"_ema": teacher},
    }


@pytest.mark.parametrize("scope", ["encoder", "full"])
@pytest.mark.parametrize("ours", [True, False])
def test_files_exported_before_are_read(scope, ours, tmp_path):
    found = random_network(tiny_config(**{"teacher.scope": scope}))
    write_torch_file(tmp_path / "x.pt", saved_before(found, ours=ours))
    back = read_checkpoint(tmp_path / "x.pt")
    same_network(found, back)
    assert back.step == 7 and back.config.teacher.scope == scope
    assert back.config.model == found.config.model


@pytest.mark.parametrize("scope", ["encoder", "full"])
def test_exports_are_read_without_what_is_ours_in_them(scope, tmp_path):
    """As fairseq saves them again."""
    found = random_network(tiny_config(**{"teacher.scope": scope}))
    content = exported(found, tmp_path / "out")
    del content["extra_state"]["dinosr_jax"]
    write_torch_file(tmp_path / "x.pt", content)
    back = read_checkpoint(tmp_path / "x.pt")
    same_network(found, back)
    assert back.config.model == found.config.model and back.config.teacher == found.config.teacher
    assert back.config.mask == found.config.mask and back.config.codebook == found.config.codebook
    assert not any(note.startswith("ASSUMED") for note in back.notes)


def test_an_average_of_the_whole_model_is_read_and_what_is_dropped_is_named(tmp_path):
    """As the plug-in saves it: all that the model has is in the teacher, too."""
    found = random_network(tiny_config(**{"teacher.scope": "full"}))
    content = saved_before(found, ours=False)
    model = content["model"]
    others = [n for n in model if n.startswith(("heads.", "_codebook")) or n == "mask_emb"]
    assert len(others) == 4 + 4 + 1
    model["_ema"] |= {name: np.zeros_like(model[name]) for name in others}
    write_torch_file(tmp_path / "x.pt", content)
    back = read_checkpoint(tmp_path / "x.pt")
    same_network(found, back)
    assert {f"not used: _ema.{name}" for name in others} <= set(back.notes)
    model["_ema"]["another"] = model["mask_emb"]
    write_torch_file(tmp_path / "x.pt", content)
    with pytest.raises(InteropError, match=r"_ema\.another: unknown"):
        read_checkpoint(tmp_path / "x.pt")


def test_the_tensors_tell_the_scope_of_the_teacher(tmp_path):
    """The plug-in sets ema_transformer_only itself where ema_layers_only is left at its default."""
    found = random_network(tiny_config())
    content = saved_before(found, ours=False)
    content["cfg"]["model"] |= {"ema_transformer_only": False, "ema_layers_only": True}
    write_torch_file(tmp_path / "x.pt", content)
    back = read_checkpoint(tmp_path / "x.pt")
    same_network(found, back)
    assert back.config.teacher.scope == "encoder"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("kind", ["huggingface", "fairseq", "spidr", "s3prl"])
def test_others_may_read_what_the_umask_allows(kind, umask, tmp_path):
    found = random_network(tiny_config())
    before = os.umask(umask)
    try:
        exports.export(found, tmp_path / "out", kind=kind)
    finally:
        os.umask(before)
    files = list((tmp_path / "out").iterdir())
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in files}
    assert len(files) > 1 and set(modes.values()) == {0o666 & ~umask}, modes
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~umask
