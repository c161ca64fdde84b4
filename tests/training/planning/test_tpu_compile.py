"""Topologies, batches and errors; where libtpu is installed, a whole compilation."""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from click.testing import CliRunner

from configs import tiny
from dinosr_jax.cli import cli
from dinosr_jax.config import parse, published_recipe
from dinosr_jax.model.feature_encoder import receptive_field
from dinosr_jax.training.optimizer import make_optimizer
from dinosr_jax.training.planning import tpu_compile
from dinosr_jax.training.planning.tpu_compile import AheadError, check_topology, with_batch
from dinosr_jax.training.state import init_state

ROOT = Path(__file__).parents[3]
LIBTPU = os.environ.get("DINOSR_LIBTPU")
needs_libtpu = pytest.mark.skipif(
    LIBTPU is None and importlib.util.find_spec("libtpu") is None,
    reason="libtpu is neither installed here nor in a folder named by DINOSR_LIBTPU",
)


def command(*arguments):
    config = f"--config={ROOT / 'configs' / 'tiny.py'}"
    return CliRunner().invoke(cli, ["compile", config, *arguments])


@pytest.mark.parametrize(
    ("topology", "chips"),
    [("v5e:4x4", 16), ("v5e:16x16", 256), ("v6e:2x4", 8), ("v4:2x2x2", 8), ("v5p:2x2x1", 4)],
)
def test_topologies(topology, chips):
    assert check_topology(topology) == chips


@pytest.mark.parametrize(
    "topology", ["v5e", "v5e:4", "v5e:4x4x4", "v4:4x4", "v5e:32x16", "v5e:0x4", "v3:2x2", "4x4", ""]
)
def test_unknown_topologies(topology):
    with pytest.raises(AheadError, match="expected one of v4:AxBxC, v5e:AxB, v5p:AxBxC, v6e:AxB"):
        check_topology(topology)


def recipe(**changes):
    config = published_recipe()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config.to_dict()


def batch(config, chips, *, batch_size=None, seconds=None):
    checked, size, samples = with_batch(config, chips, batch_size=batch_size, seconds=seconds)
    assert (samples - 80) % 1600 == 0  # a length of the batch plan
    return size, round(samples / 16_000, 1), checked.data.batch_multiple


def test_the_batch_fills_the_budget():
    assert batch(recipe(), 16) == (176, 19.9, 16)  # 190 would fit, in multiples of 16
    assert batch(recipe(), 8) == (176, 19.9, 16)  # as on more devices: the recipe's batch
    assert batch(recipe(), 256) == (256, 14.8, 256)  # shortened: 3,800 / 256 = 14.84 s
    assert batch(recipe(), 48) == (144, 19.9, 48)
    assert batch(recipe(mesh__fsdp=2, mesh__tensor=4), 256) == (128, 19.9, 64)
    assert batch(recipe(mesh__data=4), 256) == (176, 19.9, 16)
    assert batch(recipe(optimizer__accumulation_steps=4), 16) == (128, 19.9, 64)


@pytest.mark.parametrize("last", [(512, 2, 1), (512, 4, 4)])
def test_the_batch_is_of_whole_frames_of_any_network(last):
    """Every 10 and every 40 ms."""
    layers = (*published_recipe().model.conv_layers[:6], last)
    config = recipe(model__conv_layers=layers)
    checked, size, samples = with_batch(config, 16, batch_size=None, seconds=None)
    field, hop = receptive_field(layers)
    assert hop == 160 * last[2] and (samples - field) % hop == 0 and size == 176
    assert 20 * 16_000 - 1600 - hop < samples <= 20 * 16_000


def test_the_batch_can_be_given():
    assert batch(recipe(), 16, batch_size=32) == (32, 19.9, 16)
    assert batch(recipe(), 4, batch_size=4, seconds=5.0) == (4, 4.9, 4)
    assert batch(recipe(), 16, seconds=10.0) == (368, 9.9, 16)
    with pytest.raises(AheadError, match="--batch_size: 24 .* multiple of 16"):
        batch(recipe(), 16, batch_size=24)
    with pytest.raises(AheadError, match="leaves 80 samples"):
        batch(recipe(), 16, seconds=0.005)


def test_errors_are_one_line_and_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("DINOSR_LIBTPU", raising=False)
    for arguments, expected in (
        (["--topology=v5e:3"], "expected one of v4:AxBxC"),
        (["--topology=v5e:2x2"], "pip install --no-deps --target=libtpu 'libtpu"),
        (["--topology=v5e:2x2", f"--libtpu={tmp_path}"], f"--no-deps --target={tmp_path}"),
        (["--topology=v5e:2x2", "--config.mesh.fspd=2"], "did you mean 'fsdp'?"),
        (["--topology=v5e:2x2", "--config.model.width=wide"], "config.model.width: found 'wide'"),
        (["--topology=v5e:2x2", "--config.seed.x=1"], "config.seed.x"),
        (["--topology=v5e:2x2", "--width=2"], "expected --config.FIELD=VALUE"),
    ):
        result = command(*arguments)
        assert result.exit_code == 1 and expected in result.output, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)


def test_overrides_reach_the_compiler(monkeypatch):
    asked = {}

    def compile_ahead(config, **options):
        asked.update(options, config=config)
        raise AheadError("far enough")

    monkeypatch.setattr(tpu_compile, "compile_ahead", compile_ahead)
    fields = ("mesh.fsdp=2", "compute_dtype=bfloat16", "optimizer.learning_rate=1e-3")
    flags = [f"--config.{field}" for field in fields]
    result = command("--topology=v5e:2x2", *flags, "--batch_size=8")
    assert "far enough" in result.output
    config = asked["config"]
    assert (config["mesh"]["fsdp"], config["compute_dtype"]) == (2, "bfloat16")
    assert config["optimizer"]["learning_rate"] == 1e-3
    assert (asked["batch_size"], asked["seconds"], asked["optimization"]) == (8, None, "O0")


def test_the_message_of_a_compiler_that_ran_out_of_memory():
    text = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
    text += "hbm. Used 20.67G of 15.75G hbm. Exceeded hbm capacity by 4.92G.\n\nTotal ..."
    said, needed = tpu_compile._shortage(text)
    assert said == "Used 20.67G of 15.75G hbm" and needed == {"in all": int(20.67 * 2**30)}
    text = "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
    text += "temporaries (214.69G) exceeds available HBM (15.75G)."
    said, needed = tpu_compile._shortage(text)
    assert said == "temporaries (214.69G) exceeds available HBM (15.75G)"
    assert needed == {"temporaries": int(214.69 * 2**30)}
    other = "RESOURCE_EXHAUSTED: else"
    assert tpu_compile._shortage(other + "\nmore") == (other, {})


@pytest.mark.skipif(LIBTPU is not None, reason="libtpu is found")
def test_a_process_that_ends_badly_is_told(monkeypatch):
    monkeypatch.setattr(tpu_compile, "find_libtpu", lambda folder: None)
    with pytest.raises(AheadError, match=r"(?s)ended with 1:.*TPU support not installed"):
        tpu_compile.compile_ahead(tiny.get_config().to_dict(), topology="v5e:2x2")


@needs_libtpu
def test_a_whole_compilation():
    result = command("--topology=v5e:2x2", "--json", "--config.compute_dtype=bfloat16")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.strip().splitlines()[-1])
    assert found["fits"] and found["chips"] == 4 and found["batch_size"] == 8
    config = parse(tiny.get_config())
    init = functools.partial(init_state, config, optimizer=make_optimizer(config))
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    state = jax.eval_shape(init)
    assert 4 * count(state) < found["needed"]["arguments"] < 2**22  # in tiles, and the batch
    places = dict(found["traffic_by_place"])
    assert sum(places.values()) == found["traffic"] and len(places) > 20
    assert places.get("without a name", 0) < 0.05 * found["traffic"]
    assert {"attention, student, backward", "feature encoder, student, forward"} <= set(places)
    # every gradient, in bfloat16 or float32, is summed over the four devices
    (kind, devices, _, size, _, known), *others = found["collectives"]
    assert (kind, devices, known, others) == ("all-reduce", 4, True, [])
    assert 2 * count(state.params) < size < 4 * count(state.params) + 2**16


@needs_libtpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_attention_of_xla_that_drops(dtype):
    changes = [f"--config.compute_dtype={dtype}", "--config.model.attention=xla"]
    result = command("--topology=v5e:2x2", *changes, "--config.model.attention_dropout=0.1")
    assert result.exit_code == 0, result.output


TRACE = """
from dinosr_jax.model import layers
from dinosr_jax.training import sharding
from dinosr_jax.training.planning import hlo, tpu_compile
asked, platform, jit_train_step = [], layers.platform, sharding.jit_train_step
layers.platform = lambda: asked.append(platform()) or asked[-1]
sharding.jit_train_step = lambda *a: asked.clear() or jit_train_step(*a)
def stop(jaxpr): raise ValueError(f"{set(asked)}")
hlo.flops = stop
tpu_compile._answer()
"""


@needs_libtpu
def test_the_formulations_for_cpus_are_not_what_is_compiled():
    """jax's default backend in that process is the CPU; the mesh says otherwise."""
    request = {"config": tiny.get_config().to_dict(), "topology": "v5e:2x2", "optimization": "O0"}
    request = json.dumps(request | {"batch_size": None, "seconds": None})
    how = {"cwd": ROOT, "env": tpu_compile.environment(LIBTPU), "input": request, "timeout": 300}
    run = subprocess.run([sys.executable, "-c", TRACE], capture_output=True, text=True, **how)
    assert json.loads(run.stdout.splitlines()[-1]) == {"error": "{'tpu'}"}, run.stderr
