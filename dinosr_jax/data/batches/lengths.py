"""The lengths that audio is cropped or padded to: those of whole frames of the network.

Shapes: T frames, G lengths.
"""

import numpy as np

FIELD, HOP = 400, 320  # samples that a frame sees, and from one to the next, as published
_GRID_SAMPLES = 1600  # from one length to the next, about


def lengths_of_frames(max_samples: int, *, field: int, hop: int) -> np.ndarray:
    """The lengths that audio is cropped or padded to: nothing of them is outside of all frames.

    Args:
      max_samples: no length is longer.
      field: samples that a frame sees.
      hop: samples from one frame to the next.

    Returns:
      [G] int, ascending: field + (T - 1) * hop samples, which make T frames, T a multiple of as
      many frames as begin in a tenth of a second (5, where a frame begins every 20 ms).
    """
    step = _frame_grid(hop)
    frames = np.arange(step, (max_samples - field) // hop + 2, step)
    return field + (frames - 1) * hop


def shortest_length(*, field: int, hop: int) -> int:
    """The first of `lengths_of_frames`."""
    return field + (_frame_grid(hop) - 1) * hop


def _frame_grid(hop: int) -> int:
    return max(round(_GRID_SAMPLES / hop), 1)
