"""The limited training sets of Libri-Light, in their published folders (Kahn et al. 2020).

librispeech_finetuning/1h/0 to 1h/5 hold ten minutes each, together one hour; with 9h they are ten
hours. These folders are the splits of the dataset, of which larger sets are sums in TFDS syntax.
"""

import re
from collections.abc import Iterable

_PLACE = re.compile(r"(?:.*/)?(?:1h/([0-5])|(9h))/(?:clean|other)/\d+/\d+/[^/]+")
TEN_MINUTES = tuple(f"limited_10m_{number}" for number in range(6))
NINE_HOURS = "limited_9h"
ONE_HOUR = "+".join(TEN_MINUTES)
TEN_HOURS = f"{ONE_HOUR}+{NINE_HOURS}"


def limited_splits(paths: Iterable[str]) -> dict[str, str] | None:
    """Path -> split of audio files, relative to the source; None where one lies elsewhere."""
    splits = {}
    for path in paths:
        place = _PLACE.fullmatch(path)
        if place is None:
            return None
        splits[path] = NINE_HOURS if place[2] else TEN_MINUTES[int(place[1])]
    return splits
