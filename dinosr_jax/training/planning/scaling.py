"""A recipe on other devices: the same batches by gradient accumulation, or a smaller batch.

Gradient accumulation leaves the recipe as it is. Of a batch of another size, with k = new / old:

- learning rate * sqrt(k), 1 - b1 and 1 - b2 * k, eps / sqrt(k): the square root rule of Adam
  (Malladi et al., 2022, "On the SDEs and scaling rules for adaptive gradient algorithms");
- decay ** k of the teacher and of the codebooks: an average over as much audio as before
  (Busbridge et al., 2023, "How to scale your EMA");
- the length of every schedule / k: as much audio as before.

These are rules for small changes; none of them was tested on DinoSR.
"""

import math
from typing import Any

from dinosr_jax.config import differences, parse
from dinosr_jax.errors import UserError
from dinosr_jax.recipes import FIELDS

_RULES = {
    "steps": lambda steps, k: max(round(steps / k), 1) if steps else 0,
    "decay": lambda decay, k: decay**k,
    "rate": lambda rate, k: rate * math.sqrt(k),
    "epsilon": lambda epsilon, k: epsilon / math.sqrt(k),
    "beta": lambda beta, k: max(1 - k * (1 - beta), 0.0),
}


class ScalingError(UserError):
    """A recipe does not fit the devices; the message says why and what to do."""


def scale(
    config: dict[str, Any],
    *,
    devices: int,
    device_seconds: float,
    batch_seconds: float | None = None,
) -> dict[str, Any]:
    """Fits a recipe, a nested dict, to devices; returns the fields that change: name -> value.

    All devices are on the axes data and fsdp; each holds `device_seconds` of audio. An update has
    `batch_seconds`; None leaves it, and with it the recipe.

    Raises:
      ScalingError: There is no such batch.
      ValueError: The configuration has errors.
    """
    old = parse(config)
    longest = min(old.data.max_seconds, old.data.max_batch_seconds)
    if devices < 1 or device_seconds < longest:
        raise ScalingError(
            f"{devices} devices that hold {device_seconds:g} s each: expected at least one that "
            f"holds an utterance of {longest:g} s"
        )
    total = batch_seconds or old.data.max_batch_seconds
    new = parse(config).to_dict()
    if batch_seconds:
        _set_batch(new, batch_seconds)
    parts = math.ceil(total / (devices * device_seconds))
    new["optimizer"]["accumulation_steps"] = parts
    if old.data.batch_multiple % (devices * parts):  # else the batches stay what they are
        new["data"]["batch_multiple"] = devices * parts
    if new["data"]["batch_multiple"] * longest > total:
        raise ScalingError(
            f"a batch of {total:g} s cannot be dealt to {devices} devices in {parts} "
            f"micro-batches: {devices * parts} utterances of up to {longest:g} s are needed; use "
            "fewer devices, more seconds a device or a larger batch"
        )
    parse(new)
    return {name: after for name, (_, after) in differences(old.to_dict(), new).items()}


def _set_batch(config: dict[str, Any], batch_seconds: float) -> None:
    """Gives a configuration another batch, and the fields that follow."""
    if not 0 < batch_seconds < math.inf:
        raise ScalingError(f"batch_seconds: found {batch_seconds}, expected more than 0")
    k = batch_seconds / config["data"]["max_batch_seconds"]
    config["data"]["max_batch_seconds"] = float(batch_seconds)
    for name, field in FIELDS.items():
        if field.scales:
            *section, last = name.split(".")
            fields = config[section[0]] if section else config
            fields[last] = _RULES[field.scales](fields[last], k)
