"""What is exported comes back bit for bit, and other projects read it."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from dinosr_jax.cli import cli
from dinosr_jax.config import parse
from dinosr_jax.inference.pretrained import load
from dinosr_jax.interop import exports, runs
from dinosr_jax.interop.formats import Choices, Imported, InteropError, at_step, read_checkpoint
from dinosr_jax.objective.teacher import teacher_parts
from dinosr_jax.training.checkpoint import CheckpointError
from dinosr_jax.training.state import make_model
from dinosr_jax.training.step import apply
from tests.interop import test_fairseq_files as of_fairseq
from tests.interop.test_fairseq import GOLDEN
from tests.random_states import random_network, same_network
from tests.tiny_runs import make_state, tiny_config

pytestmark = pytest.mark.usefixtures("compile_quickly", "compile_once")


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
    same_network(a, b)
    assert (a.step, a.config) == (b.step, b.config) and int(b.state.step) == a.step


@pytest.mark.parametrize("kind", ["huggingface", "huggingface teacher", "fairseq", "spidr"])
def test_exports_come_back(kind, found, tmp_path):
    kind, *model = kind.split()
    exports.export(found, tmp_path / "out", kind=kind, model=(model or ["student"])[0])
    back = read_checkpoint(tmp_path / "out")
    same(found, back)
    assert back.data["fingerprint"] == "abc" and back.source == kind
    assert (tmp_path / "out/README.md").read_text().count("updates: 7") == 1
    with pytest.raises(InteropError, match="not empty"):
        exports.export(found, tmp_path / "out", kind=kind)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_command(tmp_path):
    golden = str(GOLDEN / "tiny_fairseq.pt")
    arguments = ["export", golden, "--format=spidr", f"--output={tmp_path / 'out'}"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0 and "written for spidr" in done.output
    same(read_checkpoint(golden), read_checkpoint(tmp_path / "out/dinosr.pt"))
    (tmp_path / "two").mkdir()
    for name in ("a.pt", "b.pt"):
        (tmp_path / "two" / name).touch()
    with pytest.raises(InteropError, match="two: no checkpoint: .* one .pt file"):
        read_checkpoint(tmp_path / "two")
    again = CliRunner().invoke(cli, arguments)
    assert again.exit_code == 1 and again.output.startswith("Error: ")
    assert "not empty" in again.output and again.output.count("\n") == 1
    done = CliRunner().invoke(cli, [*arguments[:3], f"--output={tmp_path}/b", "--model=teacher"])
    assert done.exit_code == 2 and "--model" in done.output and not (tmp_path / "b").exists()


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


@pytest.mark.parametrize("scope", ["encoder", "full"])
def test_s3prl_finds_what_its_loader_looks_up(scope, tmp_path):
    """Three entries, the fields as plain dicts, and the tensors of its network, strictly."""
    found = random_network(tiny_config(**{"teacher.scope": scope}))
    assert exports.export(found, tmp_path / "out", kind="s3prl") == []
    content = of_fairseq.read(tmp_path / "out/dinosr.pt")
    assert list(content) == ["task_cfg", "model_cfg", "model_weight"]
    theirs = of_fairseq.exported(found, tmp_path / "fairseq")
    for name, expected in (("task_cfg", of_fairseq.TASK), ("model_cfg", theirs["cfg"]["model"])):
        assert type(content[name]) is dict
        of_fairseq.assert_equal_with_types(content[name], expected)
    fields = of_fairseq.told_by(of_fairseq.TINY, channels=16, scope=scope)
    of_fairseq.assert_equal_with_types(
        {name: content["model_cfg"][name] for name in fields}, fields
    )
    weights = content["model_weight"]
    assert weights.pop("_ema") == {}  # the loader removes this entry
    assert of_fairseq.shapes(weights) == of_fairseq.student_of(fields)
    for name, value in weights.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, theirs["model"][name])
    card = (tmp_path / "out/README.md").read_text()
    assert "for s3prl" in card and "holds the student, without its heads" in card
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"dinosr.pt", "README.md"}


def test_torch_reads_what_is_for_s3prl(tmp_path):
    torch = pytest.importorskip("torch")
    exports.export(read_checkpoint(GOLDEN / "tiny_fairseq.pt"), tmp_path / "out", kind="s3prl")
    found = torch.load(tmp_path / "out/dinosr.pt", map_location="cpu", weights_only=True)
    expected = torch.load(GOLDEN / "tiny_fairseq.pt", weights_only=True)["model"]
    others = ("heads.", "_codebook", "_ema")
    student = {name: value for name, value in expected.items() if not name.startswith(others)}
    weights = found["model_weight"]
    del weights["_ema"]
    assert weights.keys() == student.keys()
    assert all(torch.equal(value, weights[name]) for name, value in student.items())


def test_what_is_for_s3prl_is_no_way_back(tmp_path):
    """It is refused by name, where it is read as a checkpoint, and where it is made a run."""
    golden = str(GOLDEN / "tiny_fairseq.pt")
    arguments = ["export", golden, "--format=s3prl", f"--output={tmp_path / 'out'}"]
    done = CliRunner().invoke(cli, arguments)
    assert (
        done.exit_code == 0 and "written for s3prl" in done.output and "WARNING" not in done.output
    )
    for path in (tmp_path / "out", tmp_path / "out/dinosr.pt"):
        done = CliRunner().invoke(cli, ["import", str(path), f"--output={tmp_path / 'run'}"])
        assert done.exit_code == 1 and "dinosr.pt: a checkpoint for s3prl" in done.output
        assert done.output.count("\n") == 1 and not (tmp_path / "run").exists()
    done = CliRunner().invoke(cli, [*arguments[:3], f"--output={tmp_path}/b", "--model=teacher"])
    assert done.exit_code == 2 and "for s3prl holds the student" in done.output


def test_another_frame_rate_is_told_for_s3prl(tmp_path):
    config = tiny_config(**{"model.conv_layers": ((16, 8, 4), (16, 4, 3), (16, 3, 2))})
    (warning,) = exports.export(random_network(config), tmp_path / "out", kind="s3prl")
    assert "320 samples a frame for granted, this network has 24" in warning
    assert warning in (tmp_path / "out/README.md").read_text()


def hidden_states(folder, waveforms):
    """Those of transformers' model."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(torch.from_numpy(waveforms), output_hidden_states=True).hidden_states


def our_layers(config, params, waveforms):
    """The encoder's input and every layer's output."""
    network = make_model(config)

    @jax.jit
    def compute(params, waveforms):
        projected = apply(network, params, waveforms, method="project")
        return apply(network, params, projected, all_layers=True, method="encode")

    with jax.default_matmul_precision("highest"):
        layers = compute(params, waveforms)
    return [layers.input, *layers.block]


def test_transformers_computes_the_same(tmp_path):
    transformers = pytest.importorskip("transformers")
    golden = dict(np.load(GOLDEN / "tiny.npz"))
    found = read_checkpoint(GOLDEN / "tiny_fairseq.pt")
    exports.export(found, tmp_path / "out", kind="huggingface")
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    assert extractor.do_normalize and extractor.return_attention_mask
    states = hidden_states(tmp_path / "out", golden["waveforms"])
    ours = our_layers(found.config, found.state.params, golden["waveforms"])
    assert len(states) == len(ours) == 5
    for i in range(5):
        np.testing.assert_allclose(states[i], ours[i], rtol=0, atol=1e-5)
    for i in range(4):
        np.testing.assert_allclose(states[i + 1], golden[f"student_layer_{i}"], rtol=0, atol=1e-5)
    _, info = transformers.AutoModelForCTC.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"lm_head.weight", "lm_head.bias"}
    assert not info["unexpected_keys"]


@pytest.mark.parametrize(("width", "num_layers"), [(32, 2), (64, 1)])
def test_transformers_computes_the_same_with_other_networks(width, num_layers, tmp_path):
    changes = {"width": width, "num_layers": num_layers, "num_codebooks": 1}
    changes |= {"conv_layers": ((24, 8, 4), (16, 4, 3), (20, 3, 2))}
    changes |= {"pos_conv_depth": 2, "pos_conv_width": 8}  # an even kernel
    config = tiny_config(**{f"model.{name}": value for name, value in changes.items()})
    state = make_state(config)
    noise = lambda x: x + 0.1 * np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    state = state.replace(teacher_params=jax.tree.map(noise, state.teacher_params))
    found = Imported(config, state, 0, "run", [], {})
    exports.export(found, tmp_path / "out", kind="huggingface", model="teacher")
    waveforms = np.random.default_rng(1).normal(size=(2, 1200)).astype(np.float32)
    states = hidden_states(tmp_path / "out", waveforms)
    ours = our_layers(config, {**state.params, **state.teacher_params}, waveforms)
    assert states[0].shape[-1] == width and len(states) == len(ours) == num_layers + 1
    for i in range(num_layers + 1):
        np.testing.assert_allclose(states[i], ours[i], rtol=0, atol=1e-5)


def test_a_student_alone_gets_teacher_and_codebooks(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    golden = read_checkpoint(GOLDEN / "tiny_fairseq.pt")
    exports.export(golden, tmp_path / "out", kind="huggingface")
    (tmp_path / "out/dinosr.safetensors").unlink()
    weights = safetensors.load_file(tmp_path / "out/model.safetensors")
    (tmp_path / "out/model.safetensors").unlink()
    weights = {f"data2vec_audio.{name}": value for name, value in weights.items()}
    weights["lm_head.weight"] = np.zeros((5, 48), np.float32)
    index = {name: f"model-{len(name) % 2}.safetensors" for name in weights}
    for shard in set(index.values()):
        part = {name: weights[name] for name in weights if index[name] == shard}
        safetensors.save_file(part, tmp_path / "out" / shard)
    text = json.dumps({"weight_map": index})
    (tmp_path / "out/model.safetensors.index.json").write_text(text)
    found = read_checkpoint(tmp_path / "out", choices=Choices(num_codebooks=2, codebook_size=8))
    assert "not used: lm_head.weight" in found.notes
    assert any(note.startswith("STUDENT ONLY") for note in found.notes)
    assert found.state.codebook.sums.shape == (2, 8, 48)
    teacher = teacher_parts(found.state.params, scope="encoder")
    jax.tree.map(np.testing.assert_array_equal, found.state.teacher_params, teacher)
    golden_encoder, encoder = golden.state.params["encoder"], found.state.params["encoder"]
    jax.tree.map(np.testing.assert_array_equal, golden_encoder, encoder)


def test_misfits_of_hugging_face_have_its_names(tmp_path):
    """Also a pytorch_model.bin in the place of the safetensors."""
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    prefix = "data2vec_audio."
    exports.export(
        read_checkpoint(GOLDEN / "tiny_fairseq.pt"), tmp_path / "out", kind="huggingface"
    )
    weights = safetensors.load_file(tmp_path / "out/model.safetensors")
    (tmp_path / "out/model.safetensors").unlink()
    weights = {f"{prefix}{name}": value for name, value in weights.items()}
    weights["version"] = 3
    torch.save(weights, tmp_path / "out/pytorch_model.bin")
    found = read_checkpoint(tmp_path / "out")
    assert "not used: version, which is no tensor" in found.notes
    layer = f"{prefix}encoder.layers.1"
    norm = weights[f"{layer}.layer_norm.bias"]
    del weights[f"{layer}.attention.q_proj.bias"]
    weights |= {f"{layer}.layer_norm.bias": norm[1:], f"{layer}.layer_norm.weight": norm.long()}
    torch.save(weights | {"another": norm}, tmp_path / "out/pytorch_model.bin")
    expected = [
        f"  {layer}.attention.q_proj.bias: missing, expected shape [48]",
        f"  {layer}.layer_norm.bias: found shape [47], expected [48]",
        f"  {layer}.layer_norm.weight: found int64, expected floating point",
        "  another: unknown",
    ]
    for beside in (True, False):
        with pytest.raises(InteropError) as error:
            read_checkpoint(tmp_path / "out")
        lines = str(error.value).splitlines()[1:]
        assert len(lines) == 4
        assert all(any(line.startswith(text) for line in lines) for text in expected)
        (tmp_path / "out/dinosr.safetensors").unlink(missing_ok=not beside)


@pytest.mark.slow
def test_units_of_a_student_alone_are_refused(tmp_path):
    """Before and after it is made a run, until it is trained on."""
    from dinosr_jax.inference.pretrained import load
    from dinosr_jax.interop import runs

    golden = read_checkpoint(GOLDEN / "tiny_fairseq.pt")
    exports.export(golden, tmp_path / "out", kind="huggingface")
    noise = np.random.default_rng(0).normal(size=8000).astype(np.float32)
    assert len(load(tmp_path / "out").units(noise, layer=golden.config.model.num_layers))
    network = load(tmp_path / "out").fingerprint_of("student")
    (tmp_path / "out/dinosr.safetensors").unlink()
    found = read_checkpoint(tmp_path / "out", choices=Choices(num_codebooks=2, codebook_size=8))
    runs.write_run(found, tmp_path / "run")
    assert load(tmp_path / "run").fingerprint_of("student") == network  # k-means fits both
    for path in (tmp_path / "out", tmp_path / "run"):
        for source in ("codebook", "head"):
            with pytest.raises(ValueError, match="mean nothing.*--source=kmeans"):
                load(path).units(noise, layer=found.config.model.num_layers, source=source)
        assert len(load(path).extract(noise, layer=1)) == 24


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("fairseq", "encoder.layers.1.fc1.weight"),
        ("spidr", "student.layers.1.feed_forward.intermediate_dense.weight"),
        ("huggingface", "data2vec_audio.encoder.layers.1.feed_forward.intermediate_dense.weight"),
        ("run", "params/encoder/layers/ffn_in/kernel"),
    ],
)
def test_a_network_that_is_not_finite_is_refused_by_the_name_of_the_tensor(
    kind, name, value, tmp_path
):
    golden = read_checkpoint(GOLDEN / "tiny_fairseq.pt")
    params = jax.tree.map(np.array, golden.state.params)
    params["encoder"]["layers"]["ffn_in"]["kernel"][1, 0, 3] = value
    bad = golden._replace(state=dataclasses.replace(golden.state, params=params))
    path, output = tmp_path / "bad", tmp_path / "out"
    runs.write_run(bad, path) if kind == "run" else exports.export(bad, path, kind=kind)
    message = rf"(?s){re.escape(name.split('.', 1)[-1])}: 1 of .* numbers are NaN or infinite"
    for read in (runs.read_any, load):
        with pytest.raises((InteropError, CheckpointError), match=message):
            read(path)
    noise = np.random.default_rng(0).standard_normal(8_000) / 10
    soundfile.write(tmp_path / "x.wav", noise, 16_000)
    for command in (
        ["extract", path, tmp_path / "x.wav", "--layer=2", f"--output={output}"],
        ["units", path, tmp_path / "x.wav", "--layer=2", f"--output={output}", "--source=head"],
        ["import", path, f"--output={output}"],
        ["export", path, f"--output={output}", "--format=huggingface"],
    ):
        if command[0] != "import" or kind != "run":
            done = CliRunner().invoke(cli, list(map(str, command)))
            assert done.exit_code == 1 and re.search(message, done.output), done.output
    assert not output.exists()


@pytest.mark.parametrize("part", ["teacher_params", "codebook"])
def test_the_rest_of_a_checkpoint_is_finite_too(part, tmp_path):
    golden = read_checkpoint(GOLDEN / "tiny_fairseq.pt")
    broken = jax.tree.map(lambda x: x * np.float32(np.inf), getattr(golden.state, part))
    bad = golden._replace(state=dataclasses.replace(golden.state, **{part: broken}))
    exports.export(bad, tmp_path / "bad", kind="fairseq")
    runs.write_run(bad, tmp_path / "run")
    for path, name in (("bad", "_"), ("run", part)):
        with pytest.raises((InteropError, CheckpointError), match=rf"{name}.*: .* NaN or infinite"):
            runs.read_any(tmp_path / path)
