"""The lengths that audio is cropped or padded to: those of whole frames of the network.

Shapes: T frames, G lengths, V nodes.
"""

import numpy as np

FIELD, HOP = 400, 320  # samples that a frame sees, and from one to the next, as published
_GRID_SAMPLES = 1600  # from one length to the next, about


def lengths_of_frames(max_samples: int, *, field: int, hop: int) -> np.ndarray:
    """[G] int, ascending: field + (T - 1) * hop samples of whole frames, up to `max_samples`.

    T is a multiple of as many frames as begin in a tenth of a second (5, of a hop of 20 ms).
    """
    step = _frame_grid(hop)
    frames = np.arange(step, (max_samples - field) // hop + 2, step)
    return field + (frames - 1) * hop


def shortest_length(*, field: int, hop: int) -> int:
    """The first of `lengths_of_frames`."""
    return field + (_frame_grid(hop) - 1) * hop


def _frame_grid(hop: int) -> int:
    return max(round(_GRID_SAMPLES / hop), 1)


def best_paths(gain: np.ndarray, *, most: int) -> list[tuple[float, list[int]]]:
    """The best paths from the first node to the last, each to later ones, of 1, 2, ... edges.

    `gain` [V, V] is of the edge from a row's node to a column's. Returns the gain of each path, and
    the nodes between its ends; of equal paths the first nodes count.
    """
    later = np.triu(np.ones(gain.shape, bool), 1)
    gain = np.where(later, gain.astype(np.float64), -np.inf)
    reached, back, paths = gain[0], [], [(float(gain[0, -1]), [])]
    for _ in range(1, most):
        total = reached[:, None] + gain
        back.append(total.argmax(axis=0))
        reached, path, node = total.max(axis=0), [], -1
        for choice in reversed(back):
            node = int(choice[node])
            path.append(node)
        paths.append((float(reached[-1]), path[::-1]))
    return paths
