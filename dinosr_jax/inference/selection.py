"""Which tensors of which layers are computed.

Shapes: B batch, T frames, D model, L layers.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax

from dinosr_jax.errors import UserError
from dinosr_jax.model.transformer import Layers

Array = jax.Array
Tensor = Literal["block", "ffn"]
Network = Literal["student", "teacher"]


class Selection(NamedTuple):
    """One tensor of some layers; computed by `batched.Forward`. 0 is the encoder's input."""

    layers: tuple[int, ...]
    tensor: Tensor

    def __call__(self, arrays: Any, layers: Layers, padding_mask: Array) -> tuple[Array, ...]:
        """[B, T, D] of each layer."""
        del arrays, padding_mask
        stacked = getattr(layers, self.tensor)
        top = len(stacked)
        last = layers.output if self.tensor == "block" else stacked[-1]
        pick = lambda i: layers.input if i == 0 else last if i == top else stacked[i - 1]
        return tuple(pick(i) for i in self.layers)


def parse_layers(
    layer: int | str | Sequence[int], *, num_layers: int, tensor: Tensor = "block"
) -> tuple[int, ...]:
    """Layers, in the order given.

    Args:
      layer: A number, several, 'all' (1 to L), or text such as '5', '1,5,9', '4-6'.
      num_layers: L.
      tensor: 'block' or 'ffn'; layer 0 has a block only.

    Raises:
      UserError: There is no such layer or tensor; or one is named twice.
    """
    if tensor not in get_args(Tensor):
        raise UserError(f"tensor: found {tensor!r}, expected 'block' or 'ffn'")
    try:
        numbers = _numbers(layer, num_layers)
    except (TypeError, ValueError):
        raise UserError(
            f"layer: found {layer!r}, expected a number, several (1,5,9 or 4-6), or 'all'"
        ) from None
    for number in numbers:
        if not 0 <= number <= num_layers:
            raise UserError(
                f"layer {number}: this network has layers 1 to {num_layers} (0 is their input)"
            )
    if 0 in numbers and tensor == "ffn":
        raise UserError("layer 0 is the encoder's input; it has no ffn: use tensor block")
    if not numbers or len(set(numbers)) != len(numbers):
        raise UserError(f"layer: found {layer!r}, expected each layer once")
    return tuple(numbers)


def _numbers(layer: int | str | Sequence[int], num_layers: int) -> list[int]:
    if isinstance(layer, str):
        if layer.strip() == "all":
            return list(range(1, num_layers + 1))
        numbers = []
        for part in layer.split(","):
            first, dash, last = part.strip().partition("-")
            numbers += range(int(first), int(last) + 1) if dash else [int(first)]
        return numbers
    if isinstance(layer, bool) or isinstance(layer, float):
        raise TypeError
    if hasattr(layer, "__index__"):
        return [layer.__index__()]
    return [number.__index__() for number in layer]
