"""DinoSR in JAX: self-distillation and online clustering for self-supervised speech."""

__version__ = "0.1.0"
