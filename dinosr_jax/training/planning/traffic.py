"""Where in the model the traffic of a compiled program comes from.

XLA's text has, for most instructions, the path of names under which jax traced them: modules of the
network, `jax.named_scope`, `transpose(...)` for gradients, `rematted_computation` for what the
backward pass computes anew.
"""

import collections
import re

from dinosr_jax.training.planning.estimate import UNNAMED
from dinosr_jax.training.planning.hlo import COLLECTIVES, Instruction, Program

# Place -> what is in the path of its instructions; the first that matches counts.
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
    "loop over layers": r"\bencoder/while",
    "rest of the encoder": r"\bencoder/",
    "waveforms": r"waveforms",
}
_OF_A_NETWORK = tuple(PLACES)[tuple(PLACES).index("feature encoder") :] + ("random numbers",)
_PRODUCTS = ("convolution", "dot")
_FAR = 4  # instructions from one without a path to the next with one, at most


def place(path: str) -> str:
    """The place of an instruction with the `op_name` path; `UNNAMED` where it is of none.

    Places in a network have its name and the pass: 'attention, student, backward'; 'recomputed' is
    for the backward pass.
    """
    name = next((name for name, pattern in PLACES.items() if re.search(pattern, path)), UNNAMED)
    if name not in _OF_A_NETWORK:
        return name
    network = "teacher" if re.search(r"\bteacher\b", path) else "student"
    direction = "backward" if "transpose(" in path else "forward"
    direction = "recomputed" if "rematted_computation" in path else direction
    return f"{name}, {network}, {direction}"


def traffic_by_place(program: Program) -> list[tuple[str, int]]:
    """(Place in the model, bytes from and to main memory), most bytes first.

    A fusion belongs where its product or convolution does; if it has none, where most of its
    instructions do. What has no path, such as a copy for another layout, belongs to what it is made
    of, or else to what is made of it. The bytes add up to `Program.traffic`.
    """
    places: collections.Counter[str] = collections.Counter()
    for name, line, moved in program.movements():
        places[_place(program, name, line)] += moved
    return places.most_common()


def _place(program: Program, name: str, line: Instruction) -> str:
    """Place of an instruction of a computation."""
    if line.opcode.removesuffix("-start") in COLLECTIVES:
        return "exchange between devices"
    known, users = program.computations[name], program.users(name)
    made_of, makes = [line], [line]
    if _own_place(program, line) == UNNAMED:
        return UNNAMED  # it has a path, of no place
    for _ in range(_FAR):
        for near in (_own_place(program, x) for x in [*made_of, *makes]):
            if near not in (None, UNNAMED):
                return near
        made_of = [known[x] for y in made_of for x in y.operands if x in known]
        makes = [x for y in makes for x in users.get(y.name, ())]
    return UNNAMED


def _own_place(program: Program, line: Instruction) -> str | None:
    """Place by the path of an instruction and of what is fused in it; None without any path."""
    inside = program.fused(line) if line.opcode == "fusion" else []
    inside = [x for x in inside if x.opcode in _PRODUCTS] or inside
    # XLA's own instructions have no path, or a name that is none
    paths = [re.search(r'op_name="([^"]*/[^"]*)"', x.rest) for x in (*inside, line)]
    places = [place(path[1]) for path in paths if path]
    named = [x for x in places if x != UNNAMED] or places
    return collections.Counter(named).most_common(1)[0][0] if named else None
