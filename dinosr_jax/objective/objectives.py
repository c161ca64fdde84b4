"""The objectives to choose from (`config.objective`), each in the four places where they differ.

- 'dinosr' (Liu et al., 2023): every head reads the student's last layer, and predicts the code that
  its codebook gives to one of the teacher's top layers.
- 'spidr' (Poli et al., 2025, arXiv:2512.20308): the same codes, but the head of a layer reads the
  `ffn` output of that layer of the student.
- 'data2vec' (Baevski et al., 2022): no codebooks; one linear map of the student's last layer
  regresses the mean of the targets.

Shapes: B batch, T frames, D model, N of the teacher's top layers, H heads (N, or 1), V outputs of a
head (codewords, or D).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from dinosr_jax.objective import codebook as codebooks
from dinosr_jax.objective.codebook import Codebook
from dinosr_jax.objective.loss import prediction_loss, regression_loss

Array = jax.Array


class Objective(NamedTuple):
    """What heads read, and what becomes of their predictions.

    Attributes:
      reads: 'output': every head the output [B, T, D] of the student's last layer. 'ffn': each its
        own layer's `ffn`, [N, B, T, D] in all.
      predicts: 'codes' of the codebooks, or the 'targets' themselves.
      answers: (codebooks or None, targets [N, B, T, D]) -> what is to be predicted: codes [N, B, T]
        int32, or [1, B, T, D] float32.
      losses: (predictions [H, B, T, V], answers, mask [B, T], num_masked=) -> [H]; the training
        loss is their mean.
      statistics: (targets, answers, mask, codebook_size=) -> what moves the codebooks.
      update: (codebooks, statistics, decay=) -> the new codebooks.
    """

    reads: Literal["output", "ffn"]
    predicts: Literal["codes", "targets"]
    answers: Callable[..., Array]
    losses: Callable[..., Array]
    statistics: Callable[..., Codebook | None]
    update: Callable[..., Codebook | None]


def mean_target(codebook: None, targets: Array) -> Array:
    """The mean [1, B, T, D] of the layers' targets [N, B, T, D]; there are no codebooks."""
    del codebook
    return jnp.mean(targets, axis=0, keepdims=True)


def _no_codebook(*args, **kwargs) -> None:
    """In place of what codebooks are moved by."""


_CODES = (codebooks.assign, prediction_loss, codebooks.statistics, codebooks.update)
_TARGETS = (mean_target, regression_loss, _no_codebook, _no_codebook)
OBJECTIVES = {
    "dinosr": Objective("output", "codes", *_CODES),
    "spidr": Objective("ffn", "codes", *_CODES),
    "data2vec": Objective("output", "targets", *_TARGETS),
}
