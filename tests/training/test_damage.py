"""Checkpoints that are damaged, and those that only cannot be read just now."""

import ctypes
import errno
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinosr_jax.training import damage
from dinosr_jax.training.checkpoint import CheckpointError, Checkpoints

ROOT = Path(__file__).parents[2]


def state(step: int):
    return {"step": jnp.asarray(step), "w": jax.random.normal(jax.random.key(step), (20_000,))}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder of checkpoints 1 and 2."""
    folder = tmp_path_factory.mktemp("two")
    checkpoints = Checkpoints(folder, keep=2)
    for step in (1, 2):
        checkpoints.save(step, state(step), config={"seed": 0}, data={"next_step": step})
    checkpoints.wait()
    checkpoints.close()
    return folder


@pytest.fixture
def folder(two, tmp_path, monkeypatch):
    monkeypatch.setattr(damage, "_PAUSES", (0.01, 0.01))
    shutil.copytree(two, tmp_path / "run")
    return tmp_path / "run"


def restore(folder):
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0)
    )
    checkpoints = Checkpoints(folder, keep=2)
    try:
        return checkpoints.restore_latest(abstract)
    finally:
        checkpoints.close()


def files_of(folder):
    """One file of each kind in checkpoint 2."""
    by_size = lambda name: max((folder / "2" / name).iterdir(), key=lambda p: p.stat().st_size)
    return {
        "config": folder / "2/config/metadata",
        "data": folder / "2/data/metadata",
        "tree": folder / "2/state/_METADATA",
        "manifest": folder / "2/state/manifest.ocdbt",
        "node": by_size("state/d"),
        "arrays": by_size("state/ocdbt.process_0/d"),
    }


KINDS = ["config", "data", "tree", "manifest", "node", "arrays"]


HARMS = {
    "delete": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "overwrite": lambda path: path.write_bytes(b"\xff\x00" * (path.stat().st_size // 2 + 1)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("harm", HARMS)
def test_what_is_missing_short_or_undecodable_is_damaged(folder, kind, harm, caplog):
    if (kind, harm) == ("tree", "delete"):
        pytest.skip("orbax does without it")
    HARMS[harm](files_of(folder)[kind])
    restored = restore(folder)
    assert restored.step == 1 and restored.data == {"next_step": 1}
    np.testing.assert_array_equal(restored.state["w"], state(1)["w"])
    assert f"DAMAGED checkpoint 2 in {folder}" in caplog.text
    assert sorted(path.name for path in folder.iterdir()) == ["1", "damaged-2"]


@pytest.mark.parametrize("kind", ["manifest", "node"])
def test_a_flipped_byte_is_found_by_checksums(folder, kind):
    path = files_of(folder)[kind]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert restore(folder).step == 1 and (folder / "damaged-2").is_dir()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_an_input_output_error_is_no_damage(folder, kind):
    path = files_of(folder)[kind]
    path.unlink()
    path.symlink_to("/proc/self/mem")  # whose first bytes give EIO
    with pytest.raises(CheckpointError) as raised:
        restore(folder)
    message = str(raised.value)
    assert f"{folder}/2 cannot be read" in message and os.strerror(errno.EIO) in message
    assert "left as it is" in message and "run the same command again" in message
    assert names(folder) == ["1", "2"]


@pytest.fixture
def as_nobody():
    """A user who is bound by permissions."""
    if os.geteuid():
        yield
        return
    set_user = ctypes.CDLL(None).seteuid  # of all threads
    yield lambda: set_user(65534)
    set_user(0)


@pytest.mark.parametrize("kind", [*KINDS, "2/config", "2/state", "2/state/d"])
def test_missing_permission_is_no_damage(folder, kind, as_nobody):
    path = files_of(folder).get(kind, folder / kind)
    for parent in (folder, *folder.parents):
        if parent.stat().st_uid == os.getuid():
            parent.chmod(0o755)
    path.chmod(0)
    if as_nobody:
        as_nobody()
    try:
        with pytest.raises(CheckpointError, match="Permission denied"):
            restore(folder)
    finally:
        if as_nobody:
            ctypes.CDLL(None).seteuid(0)
        path.chmod(0o700)
    assert names(folder) == ["1", "2"]


@pytest.mark.parametrize("failures", [1, 2])
def test_an_error_that_passes_costs_nothing(folder, failures, monkeypatch, caplog):
    path = files_of(folder)["tree"]
    content = path.read_bytes()
    path.unlink()
    path.symlink_to("/proc/self/mem")
    pauses = []

    def mend(_):
        pauses.append(1)
        if len(pauses) == failures:
            path.unlink()
            path.write_bytes(content)

    monkeypatch.setattr(damage.time, "sleep", mend)
    assert restore(folder).step == 2
    assert len(pauses) == failures and caplog.text.count("trying again") == failures
    assert names(folder) == ["1", "2"]


def test_what_does_not_fit_is_no_damage(folder):
    checkpoints = Checkpoints(folder)
    abstract = {"w": jax.ShapeDtypeStruct((5,), jnp.float32, sharding=state(0)["w"].sharding)}
    with pytest.raises(CheckpointError, match="/2 cannot be read: .*do not match"):
        checkpoints.restore_latest(abstract)
    checkpoints.close()
    assert names(folder) == ["1", "2"]


def test_the_data_of_a_best_checkpoint_is_not_passed_over(folder):
    path = files_of(folder)["data"]
    path.unlink()
    path.symlink_to("/proc/self/mem")
    checkpoints = Checkpoints(folder)
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoints.newest_data()
    path.unlink()
    assert checkpoints.newest_data() == {"next_step": 1}
    checkpoints.close()


SCRIPT = """
import shutil, sys
from pathlib import Path
import jax
number, port, first, second = int(sys.argv[1]), sys.argv[2], *map(Path, sys.argv[3:])
jax.distributed.initialize(f"localhost:{port}", 2, number)
from dinosr_jax.training import damage
from dinosr_jax.training.checkpoint import CheckpointError, Checkpoints
damage._PAUSES = (0.01, 0.01)
where = jax.sharding.NamedSharding(jax.make_mesh((2,), ("x",)), jax.sharding.PartitionSpec("x"))

def restore(folder):
    abstract = {"w": jax.ShapeDtypeStruct((64,), "float32", sharding=where)}
    checkpoints = Checkpoints(folder, keep=2)
    try:
        restored = checkpoints.restore_latest(abstract)
        shard = restored.state["w"].addressable_shards[0].data
        print("step", restored.step, float(shard[0]), shard.shape)
    except CheckpointError as error:
        print("error:", " ".join(str(error).split()))
    checkpoints.close()

checkpoints = Checkpoints(first, keep=2)
for step in (1, 2):
    w = jax.make_array_from_callback((64,), where, lambda i: jax.numpy.full((64,), 1.0 * step)[i])
    checkpoints.save(step, {"w": w}, config={"seed": 0}, data={"next_step": step})
checkpoints.close()
folder, path = first, second / "2/config/metadata"
if number:  # the second process has its own view of the folder
    folder = shutil.copytree(first, second)
restore(folder)
if number:
    path.unlink()
    path.symlink_to("/proc/self/mem")
restore(folder)
print(sorted(path.name for path in first.iterdir()))
if number:
    path.unlink()
restore(folder)
print(sorted(path.name for path in first.iterdir()))
"""


def test_processes_go_the_same_way_where_one_cannot_read(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    (tmp_path / "script.py").write_text(SCRIPT)
    folders = [str(tmp_path / name) for name in ("first", "second")]
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = lambda number: [sys.executable, tmp_path / "script.py", str(number), port, *folders]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command(n), env=environment, **pipes) for n in range(2)]
    try:
        outputs = [process.communicate(timeout=200) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], outputs
    for output, _ in outputs:
        whole, unreadable, before, damaged, after = output.splitlines()[-5:]
        assert whole == "step 2 2.0 (32,)"
        # one of them has an error of the disk: both end, and say where
        assert unreadable.startswith("error:") and "2 cannot be read" in unreadable
        assert "second/2/config/metadata: Input/output error" in unreadable
        assert before == "['1', '2']"
        # one of them finds it damaged: both take the one before
        assert damaged == "step 1 1.0 (32,)" and after == "['1', 'damaged-2']"
