"""Memory and least time of an update that is compiled for a TPU."""

import dataclasses
from typing import Any, NamedTuple

GIB = 2**30
UNNAMED = "without a name"  # traffic of a program that comes from no place in the model
_MOST = 10  # places that the text names


class Chip(NamedTuple):
    """Published figures of a chip: Google Cloud's documentation, cloud.google.com/tpu/docs/v5e etc.

    `network` is half of what is published as bidirectional (v5e 400, v5p 1,200, v6e 800 GB/s). v4:
    six links of 50 GB/s (Jouppi et al. 2023, arXiv:2304.01433).
    """

    dimensions: int  # of the network between the chips
    most: int  # chips of the largest slice
    memory: int  # GiB of main memory (HBM)
    available: float  # GiB of it that libtpu 0.0.42 lets a program have (not published)
    peak: float  # TFLOP/s in bfloat16
    bandwidth: float  # GB/s of the main memory
    network: float  # GB/s that a chip can send to its neighbours, all links together


CHIPS = {
    "v4": Chip(3, 4096, 32, 30.75, 275, 1228, 300),
    "v5e": Chip(2, 256, 16, 15.75, 197, 819, 200),
    "v5p": Chip(3, 6144, 95, 95.74, 459, 2765, 600),
    "v6e": Chip(2, 256, 32, 31.25, 918, 1640, 400),
}


@dataclasses.dataclass
class Estimate:
    """Figures of one compilation; bytes, FLOPs and seconds are of one device and one update."""

    topology: str
    chips: int
    mesh: dict[str, int]
    batch_size: int
    seconds: float
    raised: int  # the `data.batch_multiple` that suits the mesh; 0 where it did already
    compute_dtype: str
    versions: str
    optimization: str
    compile_seconds: float = 0.0
    cpu_seconds: float = 0.0
    # bytes of 'arguments' (state and batch), 'temporaries', 'results' in no place of an argument,
    # and 'code'; where XLA gave up, the figures of its message
    needed: dict[str, int] = dataclasses.field(default_factory=dict)
    out_of_memory: str = ""
    flops: float = 0.0  # of products and convolutions, recomputation included (`hlo.flops`)
    flops_loops_once: float = 0.0  # XLA's count, element-wise operations too, loop bodies once
    traffic: float = 0.0  # bytes from and to main memory
    # [place in the model, bytes], most bytes first; they add up to `traffic`
    traffic_by_place: list[list[Any]] = dataclasses.field(default_factory=list)
    # [kind, devices, times, bytes, bytes sent at least, whether times are known]
    collectives: list[list[Any]] = dataclasses.field(default_factory=list)

    @property
    def chip(self) -> Chip:
        """The published figures."""
        return CHIPS[self.topology.partition(":")[0]]

    @property
    def fits(self) -> bool:
        """Whether what is needed is less than the chip has."""
        return not self.out_of_memory and sum(self.needed.values()) <= self.chip.available * GIB

    def bounds(self) -> dict[str, float]:
        """Seconds that an update takes at least for computing, main memory and exchange."""
        chip, sent = self.chip, sum(row[4] for row in self.collectives)
        return {
            "computing": self.flops / (chip.peak * 1e12),
            "memory": self.traffic / (chip.bandwidth * 1e9),
            "exchange": sent / (chip.network * 1e9),
        }

    def step_seconds(self) -> float:
        """Lower bound of this program: the slower of computing and memory, and then exchange."""
        bounds = self.bounds()
        return max(bounds["computing"], bounds["memory"]) + bounds["exchange"]

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        derived = {"fits": self.fits, "bounds": self.bounds(), "step_seconds": self.step_seconds()}
        return dataclasses.asdict(self) | {"chip": self.chip._asdict()} | derived

    def to_text(self, num_steps: int) -> str:
        """For people; `num_steps` updates are a run."""
        chip, axes = self.chip, ", ".join(f"{axis} {n}" for axis, n in self.mesh.items())
        share = self.batch_size / (self.mesh["data"] * self.mesh["fsdp"])
        lines = [
            f"{self.topology}: {self.chips} chips, mesh {axes}; {self.compute_dtype}",
            f"batch: {self.batch_size} x {self.seconds:.2f} s of audio, {share:g} a device",
        ]
        if self.raised:
            lines.append(f"  with config.data.batch_multiple={self.raised}: a run needs it set so")
        took = f"{self.compile_seconds:.0f} s, {self.cpu_seconds:.0f} of CPU"
        lines += [f"compiled in {took} ({self.versions}, {self.optimization})", "", "a device:"]
        lines += [f"  {n / GIB:8.2f} GiB  {name}" for name, n in self.needed.items()]
        lines += [
            f"  {chip.available:8.2f} GiB  of {chip.memory} GiB HBM that a program can have",
            *self._verdict(),
        ]
        return "\n".join(lines + ([] if self.out_of_memory else self._times(num_steps)))

    def _verdict(self) -> list[str]:
        total = sum(self.needed.values()) / GIB
        if self.fits:
            return [f"  fits: {total:.2f} of {self.chip.available} GiB"]
        memory = self.out_of_memory or f"{total:.2f} of {self.chip.available} GiB"
        return [
            f"  DOES NOT FIT: {memory}. In order: model.remat='full', a larger",
            "  optimizer.accumulation_steps, a smaller data.max_batch_seconds; where the arguments",
            "  are most of it, a larger mesh.fsdp",
        ]

    def _times(self, num_steps: int) -> list[str]:
        chip, bounds, least = self.chip, self.bounds(), self.step_seconds()
        audio = self.batch_size * self.seconds
        lines = [
            "",
            f"  {self.flops / 1e12:8.2f} TFLOP of products and convolutions, with recomputation",
            f"  {self.flops_loops_once / 1e12:8.2f} TFLOP by XLA's count, the body of a loop once",
            f"  {self.traffic / 1e9:8.2f} GB from and to HBM",
        ]
        for kind, devices, times, size, sent, known in self.collectives:
            lines.append(
                f"  {size / 1e9:8.3f} GB {kind} over {devices} devices, {times} times, "
                f"{sent / 1e9:.3f} GB sent" + ("" if known else " (ONE turn of a loop)")
            )
        return lines + [
            *self._places(),
            "",
            f"this program takes at least {least:.3f} s an update, a bound from published peaks:",
            f"  {bounds['computing']:8.3f} s  computing at {chip.peak:g} TFLOP/s (bfloat16)",
            f"  {bounds['memory']:8.3f} s  HBM at {chip.bandwidth:g} GB/s (at the same time)",
            f"  {bounds['exchange']:8.3f} s  exchange at {chip.network:g} GB/s (after them)",
            f"  at most {audio / least:,.0f} seconds of audio a second; "
            f"{num_steps:,} updates in {num_steps * least / 3600:,.1f} hours",
            *["  (runs are compiled with O2, which moves less)"] * (self.optimization == "O0"),
        ]

    def _places(self) -> list[str]:
        """The places with the most traffic, and the rest."""
        first, rest = self.traffic_by_place[:_MOST], self.traffic_by_place[_MOST:]
        if rest:
            first = [*first, [f"the rest, {len(rest)} places", sum(size for _, size in rest)]]
        unnamed = sum(size for place, size in self.traffic_by_place if place == UNNAMED)
        share = 1.0 - unnamed / max(self.traffic, 1)
        return [
            "",
            f"HBM traffic by place in the model; {share:.1%} of it has one:",
            *[f"  {size / 1e9:8.2f} GB  {place}" for place, size in first],
        ]
