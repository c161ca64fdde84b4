"""Fine-tuned networks to other projects and back; transformers transcribes with them."""

import argparse
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from dinosr_jax.cli import cli
from dinosr_jax.data import audio
from dinosr_jax.data.vocabulary import SPECIAL, letters
from dinosr_jax.inference.pretrained import load
from dinosr_jax.interop import exports, recognisers, runs
from dinosr_jax.interop.formats import Choices, InteropError, read_checkpoint
from dinosr_jax.interop.torch_file.writer import write_torch_file
from tests.interop.test_fairseq import GOLDEN
from tests.recogniser_runs import recogniser_config, write_recogniser

ROOT = Path(__file__).parents[2]
PHONES = (*SPECIAL, "AH", "S", "ts", "ʃ")
GERMAN = (*SPECIAL, "|", "e", "ä", "ß", "'", "n")
pytestmark = pytest.mark.usefixtures("compile_quickly")


def make(folder, **changes):
    write_recogniser(folder, **changes)
    return runs.read_any(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    write_recogniser(folder, step=3)
    write_recogniser(folder, step=2, folder="best", seed=4)
    return folder


@pytest.fixture(scope="module")
def found(run):
    return runs.read_any(run)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a.state.params, b.state.params)
    assert a.config == b.config and a.step == b.step == int(b.state.step)
    assert b.state.teacher_params == {} and b.state.codebook is None


def files(folder, kind):
    return folder if kind == "huggingface" else folder / "dinosr.pt"


@pytest.mark.parametrize("kind", ["huggingface", "fairseq"])
def test_exports_come_back_bit_for_bit(found, kind, tmp_path):
    assert found.step == 2  # the best
    exports.export(found, tmp_path / "out", kind=kind)
    back = read_checkpoint(files(tmp_path / "out", kind))
    same(found, back)
    card = (tmp_path / "out/README.md").read_text()
    assert "recogniser" in card and "symbols: `<s> <pad>" in card and "- codebooks:" not in card


@pytest.mark.parametrize("kind", ["huggingface", "fairseq"])
def test_without_what_we_wrote_beside_it_is_the_same_network(found, kind, tmp_path):
    """As other projects write them: no configuration of ours."""
    exports.export(found, tmp_path / "out", kind=kind)
    if kind == "huggingface":
        (tmp_path / "out/dinosr.safetensors").unlink()
        back = read_checkpoint(tmp_path / "out")
    else:
        from dinosr_jax.interop import fairseq

        place = recognisers.fairseq_place
        model = fairseq.from_state(found.state, config=found.config, naming=place)
        model["w2v_encoder.w2v_model.heads.0.weight"] = np.zeros((3, 32), np.float32)
        fields = fairseq.fields_of_config(found.config)
        content = {"cfg": {"model": {"w2v_args": {"model": fields}}}, "model": model}
        write_torch_file(tmp_path / "theirs.pt", content)
        back = read_checkpoint(tmp_path / "theirs.pt")
        assert any("ASSUMED fairseq's 32 letters" in note for note in back.notes)
        assert "not used: w2v_encoder.w2v_model.heads.0.weight" in back.notes
    jax.tree.map(np.testing.assert_array_equal, found.state.params, back.state.params)
    assert tuple(back.config.ctc.symbols) == letters().symbols and back.config.task == "ctc"
    assert back.config.model.num_heads == found.config.model.num_heads


def test_fairseq_does_not_tell_other_symbols(tmp_path):
    found = make(tmp_path / "run", symbols=GERMAN)
    exports.export(found, tmp_path / "out", kind="fairseq")
    from dinosr_jax.data.vocabulary import read_dictionary
    from dinosr_jax.interop import fairseq

    dictionary = read_dictionary(tmp_path / "out/dict.ltr.txt")
    assert dictionary.symbols == GERMAN
    place = recognisers.fairseq_place
    model = fairseq.from_state(found.state, config=found.config, naming=place)
    fields = fairseq.fields_of_config(found.config)
    write_torch_file(tmp_path / "x.pt", {"cfg": {"model": {"w2v_args": fields}}, "model": model})
    with pytest.raises(InteropError, match="10 symbols.*--vocabulary"):
        read_checkpoint(tmp_path / "x.pt")
    with pytest.raises(InteropError, match="found 32 symbols"):
        read_checkpoint(tmp_path / "x.pt", choices=Choices(symbols=letters().symbols))
    back = read_checkpoint(tmp_path / "x.pt", choices=Choices(symbols=GERMAN))
    assert tuple(back.config.ctc.symbols) == GERMAN


def test_tensors_that_do_not_fit_are_named(found, tmp_path):
    from dinosr_jax.interop import fairseq

    place = recognisers.fairseq_place
    model = fairseq.from_state(found.state, config=found.config, naming=place)
    model["w2v_encoder.another"] = model.pop("w2v_encoder.w2v_model.mask_emb")
    short = model["w2v_encoder.proj.weight"][:, 1:]
    model["w2v_encoder.proj.weight"] = np.ascontiguousarray(short)
    fields = fairseq.fields_of_config(found.config)
    write_torch_file(tmp_path / "x.pt", {"cfg": {"model": {"w2v_args": fields}}, "model": model})
    with pytest.raises(InteropError) as error:
        read_checkpoint(tmp_path / "x.pt")
    for text in ("w2v_model.mask_emb: missing", "w2v_encoder.another: unknown", "[32, 31]"):
        assert text in str(error.value)


def test_what_has_no_place(found, tmp_path):
    for kind in ("spidr", "s3prl"):
        with pytest.raises(InteropError, match=f"{kind} has no recogniser"):
            exports.export(found, tmp_path / "out", kind=kind)
    with pytest.raises(InteropError, match="no teacher"):
        exports.export(found, tmp_path / "out", kind="huggingface", model="teacher")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_in_another_order(found, tmp_path):
    """The blank last, as some folders have it; a symbol that ours needs is not there."""
    exports.export(found, tmp_path / "out", kind="huggingface")
    (tmp_path / "out/dinosr.safetensors").unlink()
    import safetensors.numpy

    weights = safetensors.numpy.load_file(tmp_path / "out/model.safetensors")
    vocab = json.loads((tmp_path / "out/vocab.json").read_text())
    names = sorted(vocab, key=vocab.get)
    order = [names.index(n) for n in names if n not in ("<pad>", "</s>")] + [0]
    for name in ("lm_head.weight", "lm_head.bias"):
        weights[name] = np.ascontiguousarray(weights[name][order])
    safetensors.numpy.save_file(weights, tmp_path / "out/model.safetensors")
    theirs = [names[k].replace("<pad>", "[PAD]").replace("|", "_") for k in order]
    (tmp_path / "out/vocab.json").write_text(json.dumps({n: k for k, n in enumerate(theirs)}))
    settings = {"pad_token": "[PAD]", "word_delimiter_token": "_", "bos_token": "<s>"}
    (tmp_path / "out/tokenizer_config.json").write_text(json.dumps(settings))
    fields = json.loads((tmp_path / "out/config.json").read_text())
    fields |= {"pad_token_id": 30, "vocab_size": 31}
    (tmp_path / "out/config.json").write_text(json.dumps(fields))
    back = read_checkpoint(tmp_path / "out")
    assert tuple(back.config.ctc.symbols) == letters().symbols
    pair = (found.state.params["output"], back.state.params["output"])
    ours, kept = (jax.tree.map(np.asarray, params) for params in pair)
    rows = [k for k in range(32) if k != 2]
    np.testing.assert_array_equal(kept["kernel"][:, rows], ours["kernel"][:, rows])
    np.testing.assert_array_equal(kept["bias"][rows], ours["bias"][rows])
    assert kept["bias"][2] < -1000 and not np.any(kept["kernel"][:, 2])


def test_a_dictionary_that_has_no_use_is_an_error(found, tmp_path):
    exports.export(found, tmp_path / "out", kind="huggingface")
    with pytest.raises(InteropError, match="found 10 symbols.*they are others; leave it out"):
        read_checkpoint(tmp_path / "out", choices=Choices(symbols=GERMAN))
    read_checkpoint(tmp_path / "out", choices=Choices(symbols=letters().symbols))
    with pytest.raises(InteropError, match="found 10 symbols.*has none"):
        read_checkpoint(GOLDEN / "tiny_fairseq.pt", choices=Choices(symbols=GERMAN))


def test_two_files_that_say_other_symbols_are_an_error(found, tmp_path):
    exports.export(found, tmp_path / "out", kind="huggingface")
    file = tmp_path / "out/vocab.json"
    file.write_text(file.read_text().replace("Z", "Ž"))
    with pytest.raises(InteropError, match=r"dinosr\.safetensors say other symbols"):
        read_checkpoint(tmp_path / "out")
    (tmp_path / "out/dinosr.safetensors").unlink()
    assert "Ž" in read_checkpoint(tmp_path / "out").config.ctc.symbols


def test_the_card_has_the_error_rates_of_this_checkpoint(run, found, tmp_path):
    """Not those of the end of the run."""
    record = {"step": 3, "loss": 1.0, "eval_loss": 2.0, "eval_wer": 0.75, "eval_cer": 0.3}
    (run / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    exports.export(runs.read_any(run), tmp_path / "best", kind="huggingface")
    card = (tmp_path / "best/README.md").read_text()
    assert "- error rates: WER 50.00% (" in card and "75" not in card.split("## Config")[0]
    last = runs.read_any(run / "checkpoints/3")
    exports.export(last._replace(data=dict(last.data)), tmp_path / "last", kind="huggingface")
    assert card.startswith("---\npipeline_tag: automatic-speech-recognition\n")


def test_a_mask_embedding_that_is_not_there(found, tmp_path):
    """As transformers leaves it out where nothing is masked, and only there."""
    import safetensors.numpy

    exports.export(found, tmp_path / "out", kind="huggingface")
    weights = safetensors.numpy.load_file(tmp_path / "out/model.safetensors")
    del weights["data2vec_audio.masked_spec_embed"]
    safetensors.numpy.save_file(weights, tmp_path / "out/model.safetensors")
    with pytest.raises(InteropError, match="masked_spec_embed: missing"):
        read_checkpoint(tmp_path / "out")
    fields = json.loads((tmp_path / "out/config.json").read_text())
    (tmp_path / "out/config.json").write_text(json.dumps(fields | {"mask_time_prob": 0.0}))
    back = read_checkpoint(tmp_path / "out")
    assert any("masked_spec_embed" in note and "zeros" in note for note in back.notes)
    assert not np.any(back.state.params["mask_embedding"]["embedding"])


def test_what_fairseq_says_of_its_recipe_is_taken(found, tmp_path):
    """Configurations of before Hydra: a Namespace in a Namespace; data2vec inside."""
    torch = pytest.importorskip("torch")
    from dinosr_jax.interop import fairseq

    place = recognisers.fairseq_place
    model = fairseq.from_state(found.state, config=found.config, naming=place)
    model = {f"module.{name}": torch.tensor(value) for name, value in model.items()}
    model["module.w2v_encoder.w2v_model.final_proj.weight"] = torch.zeros(2)
    fields = fairseq.fields_of_config(found.config)
    fields |= {"discrete": False, "instance_norm_target_layer": False, "codebook_size": None}
    inner = argparse.Namespace(arch="data2vec_audio", **fields)
    outer = argparse.Namespace(
        arch="wav2vec_ctc", w2v_args=inner, normalize=False, apply_mask=False, mask_prob=0.65,
        mask_length=7, layerdrop=0.25, dropout=0.5, freeze_finetune_updates=12, lr=[3e-5],
        max_update=500, phase_ratio="[0.1, 0.4, 0.5]", adam_eps=1e-7,
    )  # fmt: skip
    content = {"args": outer, "cfg": None, "model": model, "optimizer_history": []}
    torch.save(content | {"optimizer_history": [{"num_updates": 400}]}, tmp_path / "x.pt")
    back = read_checkpoint(tmp_path / "x.pt")
    jax.tree.map(np.testing.assert_array_equal, found.state.params, back.state.params)
    c = back.config
    assert (back.step, c.num_steps, c.ctc.freeze_steps) == (400, 500, 12)
    assert (c.mask.prob, c.mask.length, c.ctc.channel_mask_prob) == (0.0, 7, 0.0)
    assert (c.model.layerdrop, c.model.dropout) == (0.25, 0.5)
    assert (c.optimizer.learning_rate, c.optimizer.eps) == (3e-5, 1e-7)
    assert (c.optimizer.warmup_steps, c.optimizer.hold_steps) == (50, 200)
    assert "not used: w2v_encoder.w2v_model.final_proj.weight" in back.notes
    assert any("not normalised" in note for note in back.notes)


@pytest.mark.parametrize("cfg", [{"model": 3}, {"model": {"w2v_args": "x"}}, {"w2v_args": [1]}])
def test_an_absurd_configuration_says_nothing(found, cfg, tmp_path):
    """Then shapes tell the network, but for its heads."""
    from dinosr_jax.interop import fairseq

    place = recognisers.fairseq_place
    model = fairseq.from_state(found.state, config=found.config, naming=place)
    write_torch_file(tmp_path / "x.pt", {"cfg": cfg, "model": model})
    with pytest.raises(InteropError, match="--heads=N"):
        read_checkpoint(tmp_path / "x.pt")
    back = read_checkpoint(tmp_path / "x.pt", choices=Choices(heads=4))
    assert back.config.model.width == 32 and back.config.model.num_heads == 4


def test_commands(run, tmp_path):
    """Out, in again as a run, and transcribed with from each."""
    invoke = lambda *a: CliRunner().invoke(cli, list(map(str, a)))
    out, again = tmp_path / "out", tmp_path / "again"
    done = invoke("export", run, "--format=huggingface", f"--output={out}")
    assert done.exit_code == 0, done.output
    done = invoke("import", out, f"--output={again}")
    assert done.exit_code == 0, done.output
    wave = soundfile.read(ROOT / "data/embedded/asterisk_en.ogg", frames=24_000)[0]
    texts = [load(path).transcribe(wave.astype(np.float32)) for path in (run, out, again)]
    assert texts[0] == texts[1] == texts[2] and texts[0]
    done = invoke("import", run / "config.json", f"--output={tmp_path / 'x'}")
    assert done.exit_code == 1 and "Traceback" not in done.output


NETWORKS = [
    {},
    {"model.width": 48, "model.num_layers": 2, "model.num_heads": 3},
    {"symbols": GERMAN, "model.num_layers": 1, "model.num_codebooks": 1},
    {"symbols": PHONES},
]


@pytest.mark.parametrize("changes", NETWORKS, ids=str)
def test_transformers_transcribes_the_same(changes, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    found = make(tmp_path / "run", **changes)
    exports.export(found, tmp_path / "out", kind="huggingface")
    model = load(tmp_path / "run")
    pipe = transformers.pipeline("automatic-speech-recognition", str(tmp_path / "out"))
    shards = ("asterisk_en.ogg", "asterisk_fr.ogg")
    some = [soundfile.read(ROOT / "data/embedded" / s, frames=32_000)[0] for s in shards]
    for wave in some:
        wave = wave.astype(np.float32)
        theirs = pipe({"raw": wave.copy(), "sampling_rate": 16_000})["text"]
        ours = model.transcribe(wave)
        assert ours and theirs == ours
        values = torch.from_numpy(audio.normalise(wave))[None]
        with torch.no_grad():
            logits = pipe.model(values).logits[0].log_softmax(-1).numpy()
        from dinosr_jax.inference.recognition.emissions import emissions
        from dinosr_jax.inference.recordings import Recording

        ((_, mine),) = emissions(model, [Recording("x", "x", wave, len(wave))])
        # hidden states agree to 1e-5; this output layer is eight times as large as a new one
        np.testing.assert_allclose(mine, logits, rtol=1e-5, atol=8e-5)


def test_the_configuration_is_checked():
    assert recogniser_config(symbols=GERMAN).ctc.symbols == GERMAN
