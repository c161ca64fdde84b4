"""What is exported comes back bit for bit, and other projects read it."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from test_fairseq import GOLDEN

from dinosr_jax.config import parse
from dinosr_jax.interop import exports, runs
from dinosr_jax.interop.formats import InteropError, at_step, read_checkpoint
from dinosr_jax.objective.teacher import teacher_parts


@pytest.fixture(scope="module", params=["encoder", "full"])
def found(request):
    golden = read_checkpoint(GOLDEN / "tiny_fairseq.pt")
    golden = golden._replace(step=7, state=at_step(golden.state, 7), data={"fingerprint": "abc"})
    if request.param == "encoder":
        return golden
    values = golden.config.to_dict()
    values["teacher"]["scope"] = "full"
    front = jax.tree.map(lambda x: x + 1, teacher_parts(golden.state.params, scope="full"))
    teacher = {**front, **golden.state.teacher_params}
    state = dataclasses.replace(golden.state, teacher_params=teacher)
    return golden._replace(config=parse(values), state=state)


def same(a, b):
    for part in ("params", "teacher_params", "codebook"):
        jax.tree.map(np.testing.assert_array_equal, getattr(a.state, part), getattr(b.state, part))
    assert (a.step, a.config) == (b.step, b.config) and int(b.state.step) == a.step


@pytest.mark.parametrize("kind", ["huggingface", "huggingface teacher", "fairseq", "spidr"])
def test_exports_come_back(kind, found, tmp_path):
    kind, *model = kind.split()
    exports.export(found, tmp_path / "out", kind=kind, model=(model or ["student"])[0])
    path = tmp_path / "out" if kind == "huggingface" else tmp_path / "out/dinosr.pt"
    back = read_checkpoint(path)
    same(found, back)
    assert back.data["fingerprint"] == "abc" and back.source == kind
    assert (tmp_path / "out/README.md").read_text().count("updates: 7") == 1
    with pytest.raises(InteropError, match="not empty"):
        exports.export(found, tmp_path / "out", kind=kind)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["fairseq", "spidr"])
def test_torch_reads_the_golden_layout(kind, tmp_path):
    torch = pytest.importorskip("torch")
    exports.export(read_checkpoint(GOLDEN / "tiny_fairseq.pt"), tmp_path / "out", kind=kind)
    found = torch.load(tmp_path / "out/dinosr.pt", weights_only=True)["model"]
    expected = torch.load(GOLDEN / f"tiny_{kind}.pt", weights_only=True)["model"]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        pairs = [(value, found[name])] if name != "_ema" else []
        pairs += [(value[k], found[name][k]) for k in value] if name == "_ema" else []
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs), name


def test_a_run_is_imported_and_read(found, tmp_path):
    runs.write_run(found, tmp_path / "run")
    back = runs.read_any(tmp_path / "run")
    values = found.config.to_dict() | {"workdir": str(tmp_path / "run")}
    same(found._replace(config=parse(values)), back)
    same(back, runs.read_any(tmp_path / "run/checkpoints/7"))
    assert json.loads((tmp_path / "run/config.json").read_text())["model"]["width"] == 48


def test_transformers_computes_the_same(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    golden = dict(np.load(GOLDEN / "tiny.npz"))
    found = read_checkpoint(GOLDEN / "tiny_fairseq.pt")
    exports.export(found, tmp_path / "out", kind="huggingface")
    model = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    assert extractor.do_normalize and extractor.return_attention_mask
    with torch.no_grad():
        waveforms = torch.from_numpy(golden["waveforms"])
        states = model(waveforms, output_hidden_states=True).hidden_states
    for i in range(4):
        np.testing.assert_allclose(states[i + 1], golden[f"student_layer_{i}"], rtol=0, atol=1e-5)
    _, info = transformers.AutoModelForCTC.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"lm_head.weight", "lm_head.bias"}
    assert not info["unexpected_keys"]
