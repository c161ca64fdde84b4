"""FLOPs of a traced update, and bytes that it moves, from XLA's text of the compiled program.

XLA's cost analysis counts the body of a loop once; here loops count with their turns. Bytes are of
one device, as is the text of a partitioned program.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s16": 16, "u16": 16}
_BITS |= {"s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64}
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)")
# They move nothing by themselves.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all")
_SLICES = ("dynamic-slice", "slice", "gather")
# What a fusion computes of them, it computes only of the elements that are used.
_ELEMENTWISE = ("bitcast", "reshape", "convert", "copy", "transpose")


class Instruction(NamedTuple):
    """One line of a computation; `rest` begins after the opening bracket of its operands."""

    name: str
    shape: str
    opcode: str
    rest: str
    is_root: bool

    @property
    def operands(self) -> list[str]:
        """Names of the operands."""
        depth = end = 0
        while depth >= 0 and end < len(self.rest):  # shapes may stand before the names
            depth += {"(": 1, ")": -1}.get(self.rest[end], 0)
            end += 1
        return re.findall(r"%([\w.\-]+)", self.rest[:end])

    def called(self, attribute: str) -> str | None:
        """Name of the computation in an attribute ('body', 'calls', ...)."""
        match = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
        return match and match[1]


class Collective(NamedTuple):
    """One exchange between devices."""

    kind: str  # one of `COLLECTIVES`
    size: int  # bytes of the whole arrays: before a reduction, after a gathering
    devices: int  # that exchange
    turns: int  # in an update
    counted: bool  # False in a loop of unknown length, of which one turn counts

    @property
    def sent(self) -> float:
        """Bytes that a device sends at least, all turns together (a ring's share)."""
        share = 1.0 if self.kind == "collective-permute" else 1.0 - 1.0 / self.devices
        return self.turns * self.size * share * (2.0 if self.kind == "all-reduce" else 1.0)


class Program:
    """The text of a compiled program, in computations."""

    def __init__(self, text: str, *, devices: int = 1):
        """Parses `compiled.as_text()` of a program for so many devices."""
        self.devices = devices
        self.computations: dict[str, dict[str, Instruction]] = {}
        self._users: dict[str, dict[str, list[Instruction]]] = {}
        self.entry, body = "", {}
        for line in text.splitlines():
            if line[:1] in ("%", "E") and line.endswith("{"):
                name = re.match(r"(ENTRY )?%?([\w.\-]+)", line)
                body = self.computations.setdefault(name[2], {})
                self.entry = name[2] if name[1] else self.entry
            elif match := _INSTRUCTION.match(line):
                root, name, shape, opcode, rest = match.groups()
                body[name] = Instruction(name, shape, opcode, rest, bool(root))
        if not self.entry:
            raise ValueError("the text of the compiled program has no ENTRY computation")

    def collectives(self) -> list[Collective]:
        """Every exchange between devices, also inside fusions."""
        collectives = []
        for name, turns, counted in self._executed(self.entry):
            lines = self.computations[name]
            for line in lines.values():
                kind = line.opcode.removesuffix("-start")
                if name.startswith("all-reduce-scatter"):  # a fusion: one slice of the sum
                    kind = kind.replace("all-reduce", "reduce-scatter")
                if kind in COLLECTIVES:
                    group = self._group(line)
                    size = sum(array_bytes(lines[operand].shape) for operand in line.operands)
                    size *= group if kind == "all-gather" else 1
                    collectives.append(Collective(kind, size, group, turns, counted))
        return [collective for collective in collectives if collective.devices > 1]

    def traffic(self) -> int:
        """Bytes from and to the chip's main memory, at least.

        Each fusion reads what it uses of its operands and writes its results once; a product may
        read an operand again for every tile of its result.
        """
        return sum(moved for _, _, moved in self.movements())

    def movements(self, name: str = "", turns: int = 1) -> list[tuple[str, Instruction, int]]:
        """(Computation, instruction, bytes of main memory) of what moves any, outside of fusions.

        Args:
          name: Computation; the whole program by default. Of the branches of a condition the
            costliest counts.
          turns: How often it runs.
        """
        name, moves = name or self.entry, []
        for line in self.computations[name].values():
            loop = (self._loop_turns(line) or 1) if line.opcode == "while" else 1
            inner = [self.movements(callee, turns * loop) for callee in self._callees(line)]
            if inner:
                moves += max(inner, key=lambda branch: sum(moved for _, _, moved in branch))
            elif moved := self._moved(name, line):
                moves.append((name, line, turns * moved))
        return moves

    def fused(self, line: Instruction) -> list[Instruction]:
        """Instructions of a fusion, those of fusions in it too."""
        lines = []
        for inner in self.computations[line.called("calls")].values():
            lines += self.fused(inner) if inner.opcode == "fusion" else [inner]
        return lines

    def _executed(
        self, name: str, turns: int = 1, counted: bool = True
    ) -> Iterator[tuple[str, int, bool]]:
        """Computations that run (every branch, fusions too), turns, whether they are known."""
        yield name, turns, counted
        for line in self.computations[name].values():
            loop = self._loop_turns(line) if line.opcode == "while" else 1
            for callee in self._callees(line, fusions=True):
                yield from self._executed(callee, turns * (loop or 1), counted and loop is not None)

    def _callees(self, line: Instruction, *, fusions: bool = False) -> list[str]:
        """Computations that an instruction runs; not those it applies to single numbers."""
        attributes = {
            "while": ("body",),
            "conditional": ("true_computation", "false_computation"),
            "call": ("to_apply",),
            "async-start": ("calls",),
            "fusion": ("calls",) if fusions else (),
        }.get(line.opcode, ())
        names = [name for name in map(line.called, attributes) if name]
        if listed := re.search(r"branch_computations=\{([^}]*)\}", line.rest):
            names += re.findall(r"[\w.\-]+", listed[1])
        return names

    def _loop_turns(self, line: Instruction) -> int | None:
        """Turns of a loop: XLA's note, or the constant that its counter is compared with."""
        if noted := re.search(r'known_trip_count":\{"n":"(\d+)"', line.rest):
            return int(noted[1])
        condition = self.computations[line.called("condition")]
        root = next(x for x in condition.values() if x.is_root)
        bounds = [x.rest for x in condition.values() if x.opcode == "constant"]
        if root.opcode == "compare" and "direction=LT" in root.rest and len(bounds) == 1:
            return int(bounds[0].partition(")")[0])  # counters of jax.lax.scan start at 0
        return None

    def _group(self, line: Instruction) -> int:
        """How many devices take part in a collective."""
        groups = line.rest.partition("replica_groups=")[2]
        if not groups or groups.startswith("{}"):
            return self.devices  # all; the pairs of a collective-permute are no groups
        if listed := re.match(r"\{\{([\d,]+)\}", groups):
            return listed[1].count(",") + 1
        if iota := re.match(r"\[\d+,(\d+)\]<=", groups):
            return int(iota[1])
        if mesh := re.match(r"mesh\[([^\]]*)\][^{]*\{([^}]*)\}", groups):
            sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
            axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])  # or a part of an axis
            return math.prod(int(part or sizes[axis]) for axis, part in axes)
        raise ValueError(f"replica_groups of an unknown form: {groups[:80]}")

    def _moved(self, name: str, line: Instruction) -> int:
        """Bytes of main memory that an instruction outside of a fusion reads and writes."""
        if line.opcode in _FREE or line.opcode.endswith("-done"):
            return 0
        if line.opcode == "custom-call" and '"AllocateBuffer"' in line.rest:
            return 0  # room for results to come
        operands = [_in_memory(self.computations[name][x].shape) for x in line.operands]
        output = _in_memory(line.shape)
        if line.opcode == "copy-start":  # (to, from, context)
            return output
        if line.opcode == "slice-start":  # ((from), to, context): brought onto the chip
            return array_bytes(_ARRAY.sub("", line.shape, count=1))
        if line.opcode in _SLICES:
            return 2 * output + sum(operands[1:])
        if line.opcode == "dynamic-update-slice":  # in place: the slice is written, not the whole
            return 2 * operands[1]
        if line.opcode == "scatter":  # in place as well
            return sum(operands[1:]) + operands[-1]
        if line.opcode != "fusion":
            return output + sum(operands)
        fused = line.called("calls")
        shares = [self._share(fused, name) for name in self._parameters(fused)]
        read = sum(size * share for size, share in zip(operands, shares, strict=True))
        return round(read + self._written(fused, line.shape))

    def _parameters(self, fused: str) -> list[str]:
        """Names of the parameters of a computation, in order."""
        lines = [x for x in self.computations[fused].values() if x.opcode == "parameter"]
        return [x.name for x in sorted(lines, key=lambda x: int(x.rest.partition(")")[0]))]

    def _share(self, fused: str, name: str) -> float:
        """Share of the elements of a value, 0 to 1, that a fused computation needs."""
        lines, total = self.computations[fused], 0.0
        if lines[name].is_root:
            return 1.0
        for user in self.users(fused).get(name, ()):
            at = user.operands.index(name)
            if user.opcode in _ELEMENTWISE:
                total += self._share(fused, user.name)
            elif user.opcode in _SLICES and at == 0:
                part = _elements(user.shape) / max(_elements(lines[name].shape), 1)
                total += part * self._share(fused, user.name)
            elif user.opcode == "fusion":
                inner = user.called("calls")
                total += self._share(inner, self._parameters(inner)[at])
            elif not (self._updates_in_place(fused, user) and at == 0):
                total += 1.0
        return min(total, 1.0)

    def users(self, computation: str) -> dict[str, list[Instruction]]:
        """Instructions of a computation by the names of their operands."""
        if computation not in self._users:
            users = self._users[computation] = {}
            for line in self.computations[computation].values():
                for name in set(line.operands):
                    users.setdefault(name, []).append(line)
        return self._users[computation]

    def _source(self, fused: str, name: str) -> Instruction:
        """The instruction that a value is of, whatever bitcasts are between."""
        line = self.computations[fused][name]
        return self._source(fused, line.operands[0]) if line.opcode == "bitcast" else line

    def _updates_in_place(self, fused: str, line: Instruction) -> bool:
        """Whether a slice of a fusion's operand is written over, and the rest stays as it is."""
        if line.opcode != "dynamic-update-slice":
            return False
        return self._source(fused, line.operands[0]).opcode == "parameter"

    def _written(self, fused: str, shape: str) -> float:
        """Bytes of main memory that a fusion writes; `shape` is that of its result."""
        lines = self.computations[fused]
        root = next(x for x in lines.values() if x.is_root)
        results = root.operands if root.opcode == "tuple" else [root.name]
        shapes = [match[0] for match in _ARRAY.finditer(shape)]
        if len(results) != len(shapes):  # the root is a fusion of several results
            return _in_memory(shape)
        total = 0.0
        for name, array in zip(results, shapes, strict=True):
            line = self._source(fused, name)
            if self._updates_in_place(fused, line):
                update = _elements(lines[line.operands[1]].shape)
                total += _in_memory(array) * update / max(_elements(array), 1)
            elif line.opcode == "fusion":
                total += self._written(line.called("calls"), array)
            else:
                total += _in_memory(array)
        return total


def array_bytes(shape: str, *, main_memory: bool = False) -> int:
    """Bytes of a shape in XLA's text; with `main_memory` of what is there, in whole tiles.

    XLA marks what it keeps on the chip with S(1) and the like. The tiles T(8,128) fill the last two
    axes of the layout up to multiples of 8 and 128.
    """
    total = 0
    for dtype, sizes, layout in _ARRAY.findall(shape):
        if dtype in _BITS and not (main_memory and "S(" in layout):
            axes = [int(size) for size in sizes.split(",") if size]
            if main_memory and (tile := re.search(r"T\(([\d,]+)\)", layout)):
                order = [int(axis) for axis in layout.partition(":")[0].split(",") if axis]
                for axis, size in zip(order, map(int, tile[1].split(",")[::-1]), strict=False):
                    axes[axis] = -(-axes[axis] // size) * size
            total += math.prod(axes) * _BITS[dtype] // 8
    return total


def _in_memory(shape: str) -> int:
    return array_bytes(shape, main_memory=True)


def _elements(shape: str) -> int:
    """Elements of an array's shape in XLA's text."""
    sizes = _ARRAY.search(shape)[2]
    return math.prod(int(size) for size in sizes.split(",") if size)


def flops(jaxpr: Any) -> float:
    """Multiplications and additions of all products and convolutions of a traced function.

    Recomputation for the backward pass counts, loops count with their turns, of the branches of a
    condition the costliest counts, and the zeros of dilated or padded convolutions do not count.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        inner = [flops(x) for x in _jaxprs(parameters)]
        if name == "dot_general":
            contracted = parameters["dimension_numbers"][0][0]
            sizes = [equation.invars[0].aval.shape[axis] for axis in contracted]
            total += 2.0 * equation.outvars[0].aval.size * math.prod(sizes)
        elif name == "conv_general_dilated":
            total += _convolution_flops(equation)
        elif name == "cond":
            total += max(inner)
        elif name == "scan":
            total += parameters["length"] * sum(inner)
        elif name == "pallas_call":  # written for one block of the grid
            total += math.prod(parameters["grid_mapping"].grid) * sum(inner)
        elif name == "shard_map":  # written for one device; all of them do it
            sizes = parameters["mesh"].shape
            devices = math.prod(sizes[axis] for axis in parameters["newly_manual_axes"])
            total += devices * sum(inner)
        else:
            total += sum(inner)
    return total


def _jaxprs(parameters: dict[str, Any]) -> Iterator[Any]:
    for value in parameters.values():
        for item in value if isinstance(value, tuple | list) else [value]:
            item = getattr(item, "jaxpr", item)
            if hasattr(item, "eqns"):
                yield item


def _convolution_flops(equation: Any) -> float:
    """FLOPs of a convolution over one axis: taps that meet a real frame, times channels."""
    p = equation.params
    (x, kernel), out = (v.aval.shape for v in equation.invars), equation.outvars[0].aval.shape
    numbers = p["dimension_numbers"]
    frames, taps = x[numbers.lhs_spec[2]], kernel[numbers.rhs_spec[2]]
    channels = kernel[numbers.rhs_spec[1]]  # in, of one group
    met, hole = 0, p["lhs_dilation"][0]
    at = np.arange(out[numbers.out_spec[2]]) * p["window_strides"][0] - p["padding"][0][0]
    steps = np.arange(taps) * p["rhs_dilation"][0]
    few, many = sorted((at, steps), key=len)
    for one in few:
        place = one + many
        met += np.count_nonzero((place >= 0) & (place <= (frames - 1) * hole) & (place % hole == 0))
    positions = math.prod(out) // len(at)  # of batch and channels out
    return 2.0 * positions * channels * float(met)
