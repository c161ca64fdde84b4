"""The check of a configuration, and the golden text of every configuration that ships."""

import json
import runpy
import sys
from pathlib import Path

import ml_collections
import pytest

from dinosr_jax.config import complete, differences, parse, published_recipe, to_text

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
REGENERATE = "PYTHONPATH=. python tests/test_config.py --write"


def resolved_text(name):
    config = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]()
    return to_text(parse(config)) + "\n"


def golden_path(name):
    return ROOT / "tests" / "golden" / f"config_{name}.txt"


def recipe(**changes):
    """The published recipe as nested dicts with the fields in `changes` (a__b for a.b) replaced."""
    fields = published_recipe().to_dict()
    for path, value in changes.items():
        *rooms, name = path.split("__")
        room = fields
        for part in rooms:
            room = room[part]
        room[name] = value
    return fields


def errors_of(fields):
    with pytest.raises(ValueError, match="the configuration has errors") as caught:
        parse(fields)
    return str(caught.value).splitlines()[1:]


@pytest.mark.parametrize("name", CONFIGS)
def test_golden_text(name):
    path = golden_path(name)
    expected = path.read_text() if path.exists() else ""
    message = (
        f"configs/{name}.py resolves to something else than {path.name}. If that is what you "
        f"want, regenerate the golden files with: {REGENERATE}"
    )
    assert resolved_text(name) == expected, message


def test_golden_files_are_those_of_the_configs():
    files = (ROOT / "tests" / "golden").glob("config_*.txt")
    assert {"base", "quickstart", "tiny"} <= set(CONFIGS)
    assert sorted(path.stem.removeprefix("config_") for path in files) == CONFIGS


def test_published_recipe_is_the_paper():
    config = parse(published_recipe())
    assert isinstance(config, ml_collections.FrozenConfigDict)
    assert config.num_steps == 400_000
    o, t, m = config.optimizer, config.teacher, config.model
    assert (o.warmup_steps, o.hold_steps, o.decay_steps) == (12_000, 188_000, 200_000)
    assert (o.learning_rate, o.b1, o.b2, o.eps, o.weight_decay) == (5e-4, 0.9, 0.98, 1e-6, 0.01)
    assert (t.decay, t.end_decay, t.decay_steps, t.freeze_step) == (0.999, 0.9999, 30_000, 200_001)
    assert (m.num_layers, m.width, m.ffn_dim, m.num_heads) == (12, 768, 3072, 12)
    assert (m.num_codebooks, m.codebook_size, m.layerdrop) == (8, 256, 0.05)
    assert (config.mask.prob, config.mask.length, config.codebook.decay) == (0.8, 10, 0.9)


def test_resolved_text_parses_back():
    config = parse(recipe(model__width=96, data__min_seconds=3))
    again = parse(json.loads(to_text(config)))
    assert again == config and again.model.conv_layers == config.model.conv_layers
    assert again != parse(published_recipe())


def test_the_result_is_frozen():
    config = parse(published_recipe())
    with pytest.raises(AttributeError):
        config.model.width = 96


def test_ints_are_accepted_as_floats_and_lists_as_tuples():
    fields = recipe(data__min_seconds=3, optimizer__clip_norm=10, model__dropout=0)
    fields["model"]["conv_layers"] = [[8, 10, 5], [8, 3, 2]]
    config = parse(fields)
    for value in (config.data.min_seconds, config.optimizer.clip_norm, config.model.dropout):
        assert type(value) is float
    assert config.data.min_seconds == 3.0 and config.optimizer.clip_norm == 10.0
    assert config.model.conv_layers == ((8, 10, 5), (8, 3, 2))
    assert hash(config.model.conv_layers)


@pytest.mark.parametrize(
    ("field", "hint"),
    [
        ("config.model.zzz", "known: activation_dropout, attention, "),
        ("config.teacher.freez_step", "did you mean 'freeze_step'?"),
        ("config.num_step", "did you mean 'num_steps'?"),
        ("config.optimiser", "did you mean 'optimizer'?"),
    ],
)
def test_unknown_field(field, hint):
    (error,) = errors_of(recipe(**{field.removeprefix("config.").replace(".", "__"): 1}))
    assert f"{field}: unknown field" in error and hint in error


@pytest.mark.parametrize("field", ["seed", "optimizer.b2", "model.conv_layers", "mask"])
def test_missing_field(field):
    fields = recipe()
    *rooms, name = field.split(".")
    del (fields[rooms[0]] if rooms else fields)[name]
    (error,) = errors_of(fields)
    assert f"config.{field}: missing" in error


def test_the_configuration_of_an_older_run_gets_the_fields_that_came_later():
    fields = recipe()
    later = {"guard": fields.pop("guard"), "alignment": fields["data"].pop("alignment")}
    later |= {name: fields.pop(name) for name in ("task", "init", "ctc", "objective", "perturb")}
    for name in ("eval_data_dir", "eval_dataset"):
        del fields["data"][name]
    old = json.loads(json.dumps(fields))
    assert parse(fields) == parse(published_recipe())
    assert json.loads(json.dumps(fields)) == old  # what was given is left alone
    assert complete(fields)["guard"] == later["guard"] and later.pop("alignment") == ""
    assert complete({"seed": 1, "data": 3}) == {"seed": 1, "data": 3, **later}
    for room, name in (("guard", "action"), ("data", "alignment")):
        kept = recipe(**{f"{room}__{name}": "stop"})
        assert complete(kept) == kept and parse(kept)[room][name] == "stop"
    del fields["data"]["data_dir"]
    (error,) = errors_of(fields)
    assert "config.data.data_dir: missing" in error


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("model.width", "768", "expected int"),
        ("model.width", 768.0, "expected int"),
        ("num_steps", True, "expected int"),
        ("model.scan_layers", 1, "expected bool"),
        ("optimizer.learning_rate", "5e-4", "expected float"),
        ("model.dropout", False, "expected float"),
        ("workdir", None, "expected str"),
        ("data.eval_split", None, "expected str"),
        ("model.conv_layers", 512, "expected tuple"),
        ("teacher", 3, "expected the fields decay, decay_steps"),
    ],
)
def test_wrong_type(field, value, expected):
    (error,) = errors_of(recipe(**{field.replace(".", "__"): value}))
    assert f"config.{field}: found {value!r}" in error and expected in error


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_steps", 0),
        ("log_steps", -1),
        ("eval_batches", 0),
        ("checkpoint_steps", 0),
        ("keep_every_steps", -1),
        ("seed", -1),
        ("compute_dtype", "float16"),
        ("model.attention", "flash"),
        ("model.attention", "cudnn"),  # of float32
        ("model.num_layers", 0),
        ("model.codebook_size", 0),
        ("model.dropout", 1.0),
        ("model.attention_dropout", -0.1),
        ("model.layerdrop", 1.0),
        ("model.padding_mode", "reflect"),
        ("model.conv_layers", ()),
        ("model.conv_layers", ((512, 10),)),
        ("model.conv_layers", ((512, 10, 0),)),
        ("model.conv_layers", (512, 10, 5)),
        ("teacher.scope", "student"),
        ("teacher.init", "zero"),
        ("teacher.schedule", "cosine"),
        ("teacher.timescale_steps", 0),
        ("objective", "hubert"),
        ("teacher.decay", 1.1),
        ("teacher.end_decay", -0.1),
        ("teacher.decay_steps", -1),
        ("teacher.freeze_step", 0),
        ("teacher.freeze_feature_encoder_step", -1),
        ("codebook.decay", 1.5),
        ("codebook.decay_steps", -1),
        ("mask.prob", 1.2),
        ("mask.length", 0),
        ("mask.min_spans", -1),
        ("optimizer.learning_rate", -1e-3),
        ("optimizer.learning_rate", float("nan")),
        ("optimizer.warmup_steps", -1),
        ("optimizer.b2", 1.0),
        ("optimizer.final_scale", 1.01),
        ("optimizer.clip_norm", -1.0),
        ("data.min_seconds", 0.0),
        ("data.max_batch_seconds", 0.0),
        ("data.max_rungs", 0),
        ("data.batch_multiple", 0),
        ("guard.action", "ignore"),
        ("guard.after_steps", -1),
        ("guard.patience_steps", 0),
        ("guard.min_target_std", -0.1),
        ("guard.min_feature_std", float("inf")),
        ("guard.min_target_perplexity", 1.5),
        ("guard.min_codeword_use", -0.1),
        # fields that must fit others
        ("model.num_heads", 7),
        ("model.pos_conv_groups", 7),
        ("model.num_codebooks", 13),
        ("data.max_seconds", 1.0),
    ],
)
def test_out_of_range(field, value):
    (error,) = errors_of(recipe(**{field.replace(".", "__"): value}))
    blamed = {"model.num_heads": "model.width", "model.pos_conv_groups": "model.width"}
    found = 768 if field in blamed else value
    assert error.startswith(f"  config.{blamed.get(field, field)}: found {found!r}, expected ")


@pytest.mark.parametrize("objective", ["spidr", "data2vec"])
def test_an_objective_that_needs_more_layers_than_there_are(objective):
    fields = recipe(objective=objective, model__num_layers=7, model__layerdrop=0.0)
    (error,) = errors_of(fields)
    assert error == "  config.model.num_codebooks: found 8, expected at most the 7 layers"


def test_no_layer_may_be_dropped_whose_head_is_to_learn():
    (error,) = errors_of(recipe(objective="spidr"))
    assert error.startswith("  config.model.layerdrop: found 0.05, expected 0 where objective is")
    assert parse(recipe(objective="spidr", task="ctc")).model.layerdrop == 0.05


def test_spidr_is_as_published():
    config = runpy.run_path(str(ROOT / "configs" / "spidr.py"))["get_config"]()
    assert differences(published_recipe().to_dict(), config.to_dict()) == {
        "objective": ("dinosr", "spidr"),
        "workdir": ("runs/base", "runs/spidr"),
        "compute_dtype": ("float32", "bfloat16"),
        "model.layerdrop": (0.05, 0.0),
        "model.qkv_bias": (True, False),
        "teacher.init": ("copy", "reinit"),
        "teacher.schedule": ("linear", "exponential"),
        "teacher.freeze_feature_encoder_step": (0, 200_001),
        "optimizer.b2": (0.98, 0.95),
        "optimizer.clip_norm": (0.0, 10.0),
    }
    assert config.teacher.decay == 0.999 and config.teacher.timescale_steps == 20_000


def test_all_errors_are_named_at_once():
    fields = recipe(model__widht=768, teacher__decay="x", mask__length=None)
    del fields["optimizer"]["b1"]
    text = "\n".join(errors_of(fields))
    names = ["model.widht", "teacher.decay", "mask.length", "optimizer.b1"]
    assert all(f"config.{name}:" in text for name in names)
    errors = errors_of(recipe(num_steps=0, mask__prob=2.0, teacher__scope="x"))
    assert [e.split(":")[0].strip() for e in errors] == [
        "config.num_steps",
        "config.mask.prob",
        "config.teacher.scope",
    ]


def test_differences():
    old = recipe()
    new = json.loads(json.dumps(recipe(seed=1, model__width=96)))  # lists for tuples
    del new["mask"]["prob"]
    assert differences(old, old) == {}
    assert differences(old, new) == {
        "mask.prob": (0.8, None),
        "model.width": (768, 96),
        "seed": (0, 1),
    }


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"to write the golden files: {REGENERATE}")
    for config_name in CONFIGS:
        golden_path(config_name).write_text(resolved_text(config_name))
        print(golden_path(config_name))
