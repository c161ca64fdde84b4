"""DinoSR in JAX: self-distillation and online clustering for self-supervised speech."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`load`, imported when it is first used: the package itself imports nothing."""
    if name == "load":
        from dinosr_jax.inference.pretrained import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
