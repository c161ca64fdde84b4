"""Checkpoints: what is kept, what fits, and a disk that fills up."""

import os
import resource
import signal
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinosr_jax.recipes import FIELDS, PATH
from dinosr_jax.training.checkpoint import CheckpointError, Checkpoints, check_same_run

CONFIG = {"num_steps": 10, "seed": 0, "model": {"width": 8, "conv_layers": ((1, 2, 3),)}}
DATA = {"fingerprint": "abc", "next_step": 0}


def state(step: int, size: int = 1000):
    return {"step": jnp.asarray(step), "w": jax.random.normal(jax.random.key(step), (size,))}


def abstract(size: int = 1000):
    return jax.tree.map(ocp_struct, state(0, size))


def ocp_struct(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def save(checkpoints, step, size=1000):
    checkpoints.save(step, state(step, size), config=CONFIG, data=DATA)


def test_keeps_the_last_and_every_mth_and_gives_back_the_same_bits(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, keep_every=4)
    assert checkpoints.restore_latest(abstract()) is None
    for step in range(1, 8):
        save(checkpoints, step)
    checkpoints.wait()
    assert checkpoints.steps() == [4, 6, 7]
    restored = checkpoints.restore_latest(abstract())
    assert restored.step == 7 and restored.data == DATA
    np.testing.assert_array_equal(restored.state["w"], state(7)["w"])
    data = {"old_data": restored.data, "new_data": DATA}
    changed = check_same_run(restored.config, CONFIG, **data, where=tmp_path)
    assert changed == {}  # tuples come back as lists: no difference
    checkpoints.close()


def test_a_state_that_is_donated_after_save_is_saved_as_it_was(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=9)
    now = state(0, 500_000)
    advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    expected = []
    for step in range(4):
        expected.append(np.array(now["w"], copy=True))
        checkpoints.save(step, now, config=CONFIG, data=DATA)
        now = advance(now)
    checkpoints.wait()
    for step in reversed(range(4)):
        restored = checkpoints.restore_latest(abstract(500_000))
        assert restored.step == step
        np.testing.assert_array_equal(restored.state["w"], expected[step])
        (tmp_path / str(step)).rename(tmp_path / f"seen-{step}")
        checkpoints.close()
        checkpoints = Checkpoints(tmp_path, keep=9)
    checkpoints.close()


def test_all_files_are_on_disk_before_a_checkpoint_has_its_name(tmp_path, monkeypatch):
    fsync, synced = os.fsync, set()

    def watched(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if os.path.isfile(path) and not (tmp_path / "1").exists():
            synced.add(path.split("orbax-checkpoint-tmp")[-1].partition("/")[2])
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1)
    checkpoints.close()
    assert synced >= {"config/metadata", "data/metadata", "state/_METADATA", "state/manifest.ocdbt"}


def test_every_path_may_change():
    assert {name for name, field in FIELDS.items() if field.check is PATH} >= {
        "workdir", "init", "data.data_dir", "data.eval_data_dir", "data.alignment", "ctc.lexicon",
    }  # fmt: skip
    assert all(field.may_change for field in FIELDS.values() if field.check is PATH)


def test_what_may_change_and_what_may_not(tmp_path):
    new = {**CONFIG, "num_steps": 20}
    compare = {"old_data": DATA, "where": tmp_path}
    assert check_same_run(CONFIG, new, new_data=DATA, **compare) == {"num_steps": (10, 20)}
    new = {**CONFIG, "seed": 1, "model": {"width": 9, "conv_layers": ((1, 2, 3),)}}
    with pytest.raises(CheckpointError) as raised:
        check_same_run(CONFIG, new, new_data={"fingerprint": "xyz"}, **compare)
    message = str(raised.value)
    assert "config.seed: the checkpoint has 0, asked for is 1" in message
    assert "config.model.width: the checkpoint has 8, asked for is 9" in message
    assert "abc" in message and "xyz" in message and "num_steps" not in message


def test_the_guard_and_the_alignment_may_change(tmp_path):
    old = CONFIG | {"guard": {"action": "warn"}, "data": {"alignment": ""}}
    new = CONFIG | {"guard": {"action": "stop"}, "data": {"alignment": "phones.tsv"}}
    compare = {"old_data": DATA, "new_data": DATA, "where": tmp_path}
    changed = check_same_run(old, new, **compare)
    assert changed.keys() == {"guard.action", "data.alignment"}
    assert check_same_run(CONFIG, CONFIG | {"guard": old["guard"]}, **compare).keys() == {"guard"}


@contextmanager
def no_room(num_bytes: int):
    """Files cannot grow beyond num_bytes: writing fails as on a full disk."""
    previous = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, previous[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, previous)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_disk_that_fills_up_costs_nothing_saved_before(tmp_path):
    size = 500_000
    checkpoints = Checkpoints(tmp_path, keep=1)
    save(checkpoints, 1, size)
    checkpoints.wait()
    with no_room(20_000), pytest.raises(CheckpointError) as raised:
        save(checkpoints, 2, size)
        checkpoints.wait()
    facts = (str(tmp_path), "step 1 is complete", "run the same")
    assert all(fact in str(raised.value) for fact in facts)
    checkpoints.close()
    again = Checkpoints(tmp_path, keep=1)
    restored = again.restore_latest(abstract(size))
    assert restored.step == 1
    np.testing.assert_array_equal(restored.state["w"], state(1, size)["w"])
    save(again, 2, size)
    again.wait()
    assert again.steps() == [2]
    again.close()


def test_an_imported_checkpoint_takes_any_data_and_recipe_but_the_same_network(tmp_path):
    old = CONFIG | {"model": CONFIG["model"] | {"dropout": 0.1}}
    new = {"num_steps": 20, "seed": 1, "model": old["model"] | {"dropout": 0.2}}
    compare = {"old_data": {"fingerprint": "imported"}, "new_data": DATA, "where": tmp_path}
    changed = check_same_run(old, new, **compare)
    assert changed.keys() == {"num_steps", "seed", "model.dropout"}
    new["model"]["width"] = 16
    with pytest.raises(CheckpointError, match="width: the checkpoint has 8, asked for is 16"):
        check_same_run(old, new, **compare)
