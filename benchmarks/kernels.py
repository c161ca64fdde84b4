"""The kernels that an update's time goes to: python benchmarks/kernels.py [--shape=device].

Traces some updates with jax's profiler and adds up the time of every kernel on the device (on the
CPU: of every operation that XLA runs). Prints the dearest with the place in the model that they
come from, as a table and as one line of JSON.
"""

import argparse
import collections
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import stand_in

stand_in.install()

import jax

from benchmarks.train_step import SHAPES, choices, compile_step, make_config, make_waveforms

UPDATES = 3


def read_times(trace: Path) -> dict[str, float]:
    """Nanoseconds of every operation in a folder that jax's profiler has written."""
    total: dict[str, float] = collections.defaultdict(float)
    for path in trace.rglob("*.xplane.pb"):
        planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
        on_device = [plane for plane in planes if plane.name.startswith("/device:")]
        for plane in on_device or planes:
            for line in plane.lines:
                # lines of other names sum up those of the streams
                if not on_device or line.name.startswith("Stream"):
                    for name, own in _own_times(line):
                        total[name] += own
    return total


def _own_times(line: Any) -> Iterator[tuple[str, float]]:
    """(Operation, its nanoseconds without those of operations inside) of a line of events."""
    events = []
    for event in line.events:
        operation = dict(event.stats).get("hlo_op")
        if operation or line.name.startswith("Stream"):
            events.append((event.start_ns, -event.duration_ns, str(operation or event.name)))
    open_ones: list[list] = []  # [end, name, own time]
    for start, negative, name in sorted(events):
        while open_ones and open_ones[-1][0] <= start:
            yield tuple(open_ones.pop()[1:])
        if open_ones:
            open_ones[-1][2] += negative
        open_ones.append([start - negative, name, -negative])
    for _, name, own in open_ones:
        yield name, own


def places(text: str) -> dict[str, str]:
    """Operation -> place in the model, from `compiled.as_text()`."""
    return dict(re.findall(r'%?([\w.\-]+) = [^\n]*?metadata=\{[^}\n]*?op_name="([^"]*)"', text))


def main() -> None:
    """Traces and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="base")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    for name in ("attention", "remat"):
        parser.add_argument(f"--{name}", choices=choices(f"model.{name}"))
    parser.add_argument("--count", type=int, default=10, help="of kernels (default 10)")
    arguments = parser.parse_args()
    fields = {"attention": arguments.attention, "remat": arguments.remat}
    fields = {name: value for name, value in fields.items() if value}
    config = make_config(arguments.shape, dtype=arguments.dtype, **fields)
    step, compiled, _ = compile_step(config, make_waveforms(config, *SHAPES[arguments.shape]))
    for _ in range(2):
        step()
    with tempfile.TemporaryDirectory() as trace:
        with jax.profiler.trace(trace):
            for _ in range(UPDATES):
                step()
        times = read_times(Path(trace))
    whole, known = sum(times.values()), places(compiled.as_text())
    rows = []
    for name, nanoseconds in sorted(times.items(), key=lambda item: -item[1])[: arguments.count]:
        milliseconds = round(nanoseconds / UPDATES / 1e6, 4)
        row = {"kernel": name, "ms": milliseconds, "share": round(nanoseconds / whole, 4)}
        rows.append(row | {"place": known.get(name, "")})
        print(f"{milliseconds:10.3f} ms {row['share']:6.1%}  {name}  {rows[-1]['place']}")
    analysis = compiled.cost_analysis() or {}
    about = {"ms_per_update": round(whole / UPDATES / 1e6, 3), "kernels": rows} | fields
    about |= {name: analysis[name] for name in ("flops", "bytes accessed") if name in analysis}
    print(json.dumps(about), flush=True)
    if not times:
        sys.exit("error: the profile has no operation of the device; see jax.profiler's log above")


if __name__ == "__main__":
    main()
