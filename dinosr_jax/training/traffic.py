"""Where in the model the traffic of a compiled program comes from.

XLA's text has, for most instructions, the path of names under which jax traced them: modules of the
network, `jax.named_scope`, `transpose(...)` for gradients, `rematted_computation` for what the
backward pass computes anew.
"""

import collections
import re

from dinosr_jax.training.costs import COLLECTIVES, Instruction, Program
from dinosr_jax.training.estimate import UNNAMED

# Place -> what is in the path of its instructions; the first that is found counts.
PLACES = {
    "random numbers": r"random_bits",
    "metrics": r"metrics",
    "optimizer": r"optimizer",
    "EMA of the teacher": r"teacher_update",
    "masks": r"masks|mask_embedding",
    "codebook distances": r"codebook_distances",
    "one-hot statistics": r"codebook_statistics",
    "codebook update": r"codebook_update",
    "targets": r"targets",
    "heads and loss": r"prediction_loss|ctc_loss|\bheads\b|output_layer",
    "feature encoder": r"feature_encoder",
    "feature projection": r"feature_projection",
    "positional convolutions": r"pos_conv",
    "attention's projections": r"/attention/(query|key|value|output)/",
    "attention": r"/attention/",
    "LayerNorm": r"(attention|ffn|encoder)[_/]layer_norm",
    "feed-forward": r"ffn_in|ffn_out|TransformerLayer",
    "loop over layers": r"encoder/while",
    "waveforms": r"waveforms",
}
_OF_A_NETWORK = tuple(PLACES)[tuple(PLACES).index("feature encoder") :] + ("random numbers",)
_PRODUCTS = ("convolution", "dot")


def place(path: str) -> str:
    """The place of an instruction, such as 'attention, student, backward'.

    Args:
      path: Its `op_name`.

    Returns:
      The place; of a network also whose and in which pass: 'forward', 'backward' or 'recomputed'
      for the backward pass. `UNNAMED` where the path tells nothing.
    """
    found = next((name for name, pattern in PLACES.items() if re.search(pattern, path)), UNNAMED)
    if found not in _OF_A_NETWORK:
        return found
    network = "teacher" if re.search(r"\bteacher\b", path) else "student"
    direction = "backward" if "transpose(" in path else "forward"
    direction = "recomputed" if "rematted_computation" in path else direction
    return f"{found}, {network}, {direction}"


def traffic_by_place(program: Program) -> list[tuple[str, int]]:
    """Bytes from and to main memory by their place in the model.

    A fusion belongs where its product or convolution does; if it has none, where most of its
    instructions do. Of what has no path itself, such as a copy for another layout, the operands
    tell.

    Args:
      program: The compiled program.

    Returns:
      (Place, bytes), most bytes first; they add up to `Program.traffic`.
    """
    found: collections.Counter[str] = collections.Counter()
    for name, line, moved in program.movements():
        found[_place(program, name, line)] += moved
    return found.most_common()


def _place(program: Program, name: str, line: Instruction) -> str:
    """Place of an instruction of a computation."""
    if line.opcode.removesuffix("-start") in COLLECTIVES:
        return "exchange between devices"
    inside = [line]
    if line.opcode == "fusion":
        inside = program.fused(line)
        inside = [x for x in inside if x.opcode in _PRODUCTS] or inside
    named = [x for x in map(_own_place, inside) if x != UNNAMED]
    named = named or [x for x in [_own_place(line)] if x != UNNAMED]
    if not named:
        known = program.computations[name]
        named = [_own_place(known[x]) for x in line.operands if x in known]
    return collections.Counter(named or [UNNAMED]).most_common(1)[0][0]


def _own_place(line: Instruction) -> str:
    path = re.search(r'op_name="([^"]*)"', line.rest)
    return place(path[1]) if path else UNNAMED
