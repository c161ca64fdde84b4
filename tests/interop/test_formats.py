"""Checkpoints of other projects become states."""

import argparse
import sys
import time
import types

import jax
import numpy as np
import pytest

import dinosr_jax
from dinosr_jax.interop import fairseq, huggingface
from dinosr_jax.interop.formats import Choices, InteropError, read_checkpoint
from tests.interop.test_fairseq import GOLDEN


@pytest.mark.parametrize("name", ["fairseq", "spidr"])
def test_both_golden_files_hold_the_golden_weights(name):
    found = read_checkpoint(GOLDEN / f"tiny_{name}.pt", choices=Choices(heads=4))
    assert found.source == name and found.step == int(found.state.step) == 0
    expected = dict(np.load(GOLDEN / "tiny_weights.npz"))
    tensors = fairseq.from_state(found.state, config=found.config)
    assert tensors.keys() == expected.keys()
    for key in expected:
        np.testing.assert_array_equal(tensors[key], expected[key])


@pytest.mark.parametrize("name", ["fairseq", "spidr"])
def test_features_are_the_golden_ones(name, compile_quickly):
    model = dinosr_jax.load(GOLDEN / f"tiny_{name}.pt", heads=4)
    golden = dict(np.load(GOLDEN / "tiny.npz"))
    waveforms = list(golden["waveforms"])  # normalised already
    cases = [("student", "block", "layer"), ("student", "ffn", "ffn"), ("teacher", "ffn", "ffn")]
    for network, tensor, key in cases:
        with jax.default_matmul_precision("highest"):
            found = model.extract(waveforms, layer="all", tensor=tensor, model=network)
        for b in range(2):
            assert list(found[b]) == [1, 2, 3, 4]
            for layer, features in found[b].items():
                expected = golden[f"{network}_{key}_{layer - 1}"][b]
                np.testing.assert_allclose(features, expected, rtol=0, atol=1e-5)


def test_a_fine_tuned_model_without_its_output_layer_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    saved = torch.load(GOLDEN / "tiny_fairseq.pt", weights_only=True)["model"]
    saved = {f"w2v_encoder.w2v_model.{k}": v for k, v in saved.items() if k != "_ema"}
    torch.save({"model": saved, "cfg": {}}, tmp_path / "x.pt")
    with pytest.raises(InteropError, match=r"x\.pt: w2v_encoder\.proj\.bias: missing"):
        read_checkpoint(tmp_path / "x.pt", choices=Choices(heads=4))


@pytest.mark.parametrize("name", ["fairseq", "spidr"])
def test_every_misfit_is_named(name, tmp_path):
    torch = pytest.importorskip("torch")
    saved = torch.load(GOLDEN / f"tiny_{name}.pt", weights_only=True)
    keys = [key for key in saved["model"] if key.startswith("heads.")]
    saved["model"].pop(keys[0])
    saved["model"][keys[1]] = torch.zeros(5)
    saved["model"][keys[2]] = saved["model"][keys[2]].to(torch.int64)
    saved["model"][keys[3]] = saved["model"][keys[3]] > 0
    saved["model"]["another.weight"] = torch.zeros(5)
    torch.save(saved, tmp_path / "x.pt")
    with pytest.raises(InteropError) as error:
        read_checkpoint(tmp_path / "x.pt", choices=Choices(heads=4))
    for text in (
        f"{keys[0]}: missing",
        f"{keys[1]}: found shape [5]",
        f"{keys[2]}: found int64, expected floating point",
        f"{keys[3]}: found bool, expected floating point",
        "another.weight: unknown",
    ):
        assert text in str(error.value)


def test_the_step_of_the_official_checkpoint_is_in_the_state_of_adam(tmp_path):
    torch = pytest.importorskip("torch")
    saved = torch.load(GOLDEN / "tiny_fairseq.pt", weights_only=True)
    state = {0: {"step": 399_999, "exp_avg": torch.zeros(2)}}
    saved["last_optimizer_state"] = {"state": state, "param_groups": []}
    torch.save(saved, tmp_path / "x.pt")
    found = read_checkpoint(tmp_path / "x.pt")
    assert found.step == 399_999 and "not used: last_optimizer_state" in found.notes
    saved["optimizer_history"] = [{"num_updates": 400_000}]
    torch.save(saved, tmp_path / "x.pt")
    assert read_checkpoint(tmp_path / "x.pt").step == 400_000
    del saved["optimizer_history"]
    for damaged in ({}, {"state": {}}, {"state": {0: 3}}, {"state": {0: {"step": -1}}}):
        torch.save(saved | {"last_optimizer_state": damaged}, tmp_path / "x.pt")
        found = read_checkpoint(tmp_path / "x.pt")
        assert found.step == 0 and any(note.startswith("step: ") for note in found.notes)


def test_the_same_tensor_twice_is_an_error(tmp_path):
    torch = pytest.importorskip("torch")
    saved = torch.load(GOLDEN / "tiny_spidr.pt", weights_only=True)
    saved["model"]["module.mask_embedding"] = saved["model"]["mask_embedding"]
    torch.save(saved, tmp_path / "x.pt")
    with pytest.raises(InteropError, match="mask_embedding is there twice"):
        read_checkpoint(tmp_path / "x.pt")


def test_what_a_spidr_file_holds_besides_is_named(tmp_path):
    torch = pytest.importorskip("torch")
    saved = torch.load(GOLDEN / "tiny_spidr.pt", weights_only=True)
    saved |= {"optimizer": {"state": torch.zeros(2)}, "scaler": None, "config": {}}
    saved["model"]["version"] = "1"
    torch.save(saved, tmp_path / "x.pt")
    notes = read_checkpoint(tmp_path / "x.pt", choices=Choices(heads=4)).notes
    assert {"not used: optimizer, scaler, config", "not used: version, which is no tensor"} <= {
        *notes
    }


def test_some_biases_are_missing_is_an_error(tmp_path):
    torch = pytest.importorskip("torch")
    saved = torch.load(GOLDEN / "tiny_spidr.pt", weights_only=True)
    del saved["model"]["student.layers.1.attention.qkv.bias"]
    torch.save(saved, tmp_path / "x.pt")
    with pytest.raises(InteropError, match=r"student\.layers\.1\.attention\.qkv\.bias: missing"):
        read_checkpoint(tmp_path / "x.pt", choices=Choices(heads=4))


def test_spidr_without_biases_with_prefix_in_half_precision(tmp_path):
    torch = pytest.importorskip("torch")
    saved = torch.load(GOLDEN / "tiny_spidr.pt", weights_only=True)["model"]
    saved = {k: v for k, v in saved.items() if not k.endswith("qkv.bias")}
    saved = {f"module._orig_mod.{k}": v.half() for k, v in saved.items() if k != "current_step"}
    saved["module._orig_mod.current_step"] = torch.tensor([12])
    torch.save({"model": saved}, tmp_path / "x.pt")
    found = read_checkpoint(tmp_path / "x.pt", choices=Choices(heads=4))
    assert found.step == int(found.state.step) == 12
    assert any("zeros" in note for note in found.notes)
    attention = found.state.params["encoder"]["layers"]["attention"]
    assert not np.any(attention["query"]["bias"]) and np.any(attention["query"]["kernel"])
    assert {x.dtype for x in jax.tree.leaves(found.state.params)} == {np.dtype("float32")}


def test_objects_of_packages_that_are_not_there_are_read_as_data(tmp_path):
    """A configuration in OmegaConf's nodes, a Dictionary and a Namespace, as fairseq saves them."""
    torch = pytest.importorskip("torch")
    saved = torch.load(GOLDEN / "tiny_fairseq.pt", weights_only=True)

    def made(module, name, **state):
        place = sys.modules.setdefault(module, types.ModuleType(module))
        if not hasattr(place, name):
            setattr(place, name, type(name, (), {"__module__": module}))
        thing = getattr(place, name)()
        thing.__dict__.update(state)
        return thing

    node = lambda value: made("omegaconf_absent", "AnyNode", _val=value)
    section = lambda values: made("omegaconf_absent", "DictConfig", _content=values)
    model = section({name: node(value) for name, value in saved["cfg"]["model"].items()})
    optimization = section({"max_update": node(1000), "lr": node([0.25])})
    schedule = section({"phase_ratio": node([0.1, 0.4, 0.5])})
    adam = section({"adam_betas": node("(0.8, 0.95)"), "adam_eps": node(1e-5)})
    parts = {"model": model, "optimization": optimization}
    saved["cfg"] = section(parts | {"lr_scheduler": schedule, "optimizer": adam})
    saved["task_state"] = {"target": made("fairseq_absent", "Dictionary", symbols=["a"])}
    saved["args"] = argparse.Namespace(arch="dinosr")
    saved["optimizer_history"] = [{"num_updates": 3}, {"num_updates": 400}]
    saved["model"]["_pre_encoder_ln.weight"] = torch.zeros(2)
    saved["model"]["num_updates"] = 400
    try:
        torch.save(saved, tmp_path / "x.ckpt")
    finally:
        for name in [name for name in sys.modules if "_absent" in name]:
            del sys.modules[name]
    found = read_checkpoint(tmp_path / "x.ckpt")
    assert found.step == 400 and found.config.model.num_heads == 4
    assert found.config.teacher.decay_steps == 10 and found.config.num_steps == 1000
    optimizer = found.config.optimizer
    assert (optimizer.learning_rate, optimizer.warmup_steps, optimizer.hold_steps) == (
        0.25,
        100,
        400,
    )
    assert (optimizer.b1, optimizer.b2, optimizer.eps) == (0.8, 0.95, 1e-5)
    unused = {"not used: args, last_optimizer_state, task_state"}
    unused |= {"not used: _pre_encoder_ln.weight", "not used: num_updates, which is no tensor"}
    assert unused <= set(found.notes)


def test_a_network_that_the_configuration_does_not_tell_is_inferred_loudly(tmp_path):
    torch = pytest.importorskip("torch")
    saved = {"model": torch.load(GOLDEN / "tiny_fairseq.pt", weights_only=True)["model"]}
    torch.save(saved, tmp_path / "x.pt")
    with pytest.raises(InteropError, match="width of 48 is no multiple.*--heads=N"):
        read_checkpoint(tmp_path / "x.pt")
    named = read_checkpoint(tmp_path / "x.pt", choices=Choices(heads=4))
    assert named.config.model == read_checkpoint(GOLDEN / "tiny_fairseq.pt").config.model


def test_an_absurd_configuration_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    saved = torch.load(GOLDEN / "tiny_fairseq.pt", weights_only=True)
    saved["cfg"]["model"]["encoder_layers"] = 10**9
    torch.save(saved, tmp_path / "x.pt")
    with pytest.raises(InteropError, match=r"x\.pt: its configuration says num_layers 1000000000"):
        read_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "text",
    [
        "[(512, 10, 5)] * 3000000000",  # 24 GB
        "([(512, 10, 5)] * 100) * 100",
        "[(512, 10, 5)] + [(512, 3, 2)] * 100",
        "'abc' * 3",
        "[(512, 10, 5)] * True",
        "__import__('os').system('touch x')",
        "[(2 ** 9 ** 9 ** 9, 10, 5)]",
        "(" * 5000 + ")" * 5000,
        "[" + "(512, 10, 5), " * 101 + "]",
        "[512, 10, 5]",
        7,
    ],
)
def test_convolutions_that_would_fill_memory_or_run_something(text):
    start = time.process_time()
    with pytest.raises(ValueError, match="field conv_feature_layers: found .*expected a list"):
        fairseq.config_from_fields({"conv_feature_layers": text})
    assert time.process_time() - start < 1


def test_a_configuration_of_hugging_face_that_would_fill_memory():
    fields = {"conv_pos_kernel_size": [19], "num_conv_pos_embeddings": 10**10}
    with pytest.raises(ValueError, match=r"conv_pos_kernel_size: found \[19\], expected a number"):
        huggingface.config_from_fields(fields)
