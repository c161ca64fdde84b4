"""Checkpoints of other projects become states."""

import jax
import numpy as np
import pytest
from test_fairseq import GOLDEN

from dinosr_jax.interop import fairseq
from dinosr_jax.interop.formats import Choices, InteropError, read_checkpoint


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
def test_every_misfit_is_named(name, tmp_path):
    torch = pytest.importorskip("torch")
    saved = torch.load(GOLDEN / f"tiny_{name}.pt", weights_only=True)
    keys = [key for key in saved["model"] if key.startswith("heads.")]
    saved["model"].pop(keys[0])
    saved["model"][keys[1]] = torch.zeros(5)
    saved["model"]["another.weight"] = torch.zeros(5)
    torch.save(saved, tmp_path / "x.pt")
    with pytest.raises(InteropError) as error:
        read_checkpoint(tmp_path / "x.pt")
    for text in (f"{keys[0]}: missing", f"{keys[1]}: found shape [5]", "another.weight: unknown"):
        assert text in str(error.value)


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
