"""Files of results: what is written is read, and what is missing or damaged is named."""

import json

import numpy as np
import pytest

from dinosr_jax.evaluation import result_files

FIELDS = {"command": "python -m dinosr_jax evaluate", "checkpoint": "runs/x", "step": 7}
FIELDS |= {"data": "test: 3 utterances, 0.1 min, 1 speaker", "rule": "frame centres"}
ROW = {"system": "mfcc", "layer": None, "accuracy": 0.5}


def test_written_and_read(tmp_path):
    folder = tmp_path / "evaluation"
    rows = [ROW | {"accuracy": np.float32(0.5)}, ROW | {"layer": np.int64(3), "system": "codebook"}]
    rows.append(ROW | {"layer": "weighted", "weights": np.ones(2)})
    result_files.write_results(folder / "frames.json", kind="frames", rows=iter(rows), **FIELDS)
    unit = {"pnmi": 0.1, "phone_purity": 0.2, "cluster_purity": 0.3, "perplexity": 9.0}
    unit |= {"units_in_use": 9, "num_units": 10, "counts": np.eye(2, 10, dtype=int)}
    rows = [{"system": "kmeans", "layer": 2} | unit]
    phones = {"phones": ["AA", "ə"], "title": "t"}
    result_files.write_results(folder / "units.json", kind="units", rows=rows, **FIELDS, **phones)
    (folder / "other.json").write_text("[1]")
    (folder / "features.json").write_text('{"width": 3}')
    features, frames, other, units = map(result_files.read_result, sorted(folder.iterdir()))
    assert features is other is None
    assert FIELDS.items() <= frames.items() and frames["kind"] == "frames"
    assert frames["rows"][0] == ROW and frames["rows"][1]["layer"] == 3
    assert frames["rows"][2]["weights"] == [1.0, 1.0]
    assert units["rows"][0]["counts"][1][:3] == [0, 1, 0] and units["phones"] == ["AA", "ə"]
    assert units["path"] == str(folder / "units.json")
    assert {"jax", "numpy", "python", "dinosr_jax"} <= units["versions"].keys()
    assert units["date"].startswith("20") and units["date"].endswith("+00:00")


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"kind": "wer"}, "kind: found 'wer', expected one of units, abx"),
        ({"rows": []}, "rows: found .., expected a list"),
        ({"rows": [ROW | {"system": "hubert"}]}, "rows.0..system: found 'hubert'"),
        ({"rows": [ROW, {"system": "mfcc", "layer": None}]}, "rows.1..accuracy: found None"),
        ({"rows": [ROW | {"layer": "3"}]}, "rows.0..layer: found '3'"),
        ({"rows": [ROW | {"accuracy": float("nan")}]}, "expected finite numbers"),
        ({"rows": [ROW | {"accuracy": {1, 2}}]}, "found set; expected finite numbers"),
        ({"step": "7"}, "step: found .7., expected a whole number"),
        ({"data": "a\nb"}, "data: found .*, expected one line"),
    ],
)
def test_what_is_missing_is_named(tmp_path, changed, expected):
    given = {"kind": "frames", "rows": [ROW], **FIELDS} | changed
    path = tmp_path / "x.json"
    with pytest.raises(result_files.ResultError, match=expected):
        result_files.write_results(path, **given)
    assert not path.exists()


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "units.json"
    path.write_text('{"kind": "units", "rows"')
    with pytest.raises(result_files.ResultError, match="units.json: cannot be read as JSON"):
        result_files.read_result(path)
    path.write_text(json.dumps({"kind": "frames", "rows": [ROW]}))
    with pytest.raises(result_files.ResultError, match="units.json: command: found None"):
        result_files.read_result(path)
