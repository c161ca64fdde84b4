"""Eight CPU devices and strict numerics, set before jax is imported."""

import contextlib
import os
import random

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

with contextlib.suppress(ImportError):  # of torch; its libraries crash if they follow tensorflow's
    import triton  # noqa: F401

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def evaluated_report(tmp_path_factory):
    """(run, what was written) of a report of a run with all evaluations, and names to beware of."""
    from report_runs import HOSTILE, PHONES, write_evaluation, write_training

    from dinosr_jax.evaluation.report import write_report

    run = write_training(tmp_path_factory.mktemp("runs") / "a <b>run<b> & 'its' \"name\"")
    write_evaluation(run, phones=[*PHONES[:-2], *HOSTILE])
    return run, write_report(run)


@pytest.fixture
def chance() -> random.Random:
    """For moments that are other ones every time; a failure prints the seed that repeats them."""
    seed = int(os.environ.get("DINOSR_TEST_SEED") or random.SystemRandom().randrange(10**6))
    print(f"DINOSR_TEST_SEED={seed} draws the same moments")
    return random.Random(seed)


@pytest.fixture(scope="module")
def compile_quickly():
    """For modules whose time is mostly that of XLA's compiler."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
