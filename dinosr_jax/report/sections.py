"""The parts of a report: each from a run's files to figures, and the data of its template."""

from typing import Any

from dinosr_jax.model.feature_encoder import receptive_field
from dinosr_jax.report import commands, health, published_results
from dinosr_jax.report.figures.drawing import Picture, curve_picture
from dinosr_jax.report.figures.units import (
    answer_picture,
    code_ranks,
    information_picture,
    layers_picture,
    phones_by_code,
)
from dinosr_jax.report.figures.utterance import to_wav, utterance_picture
from dinosr_jax.report.markup import Section
from dinosr_jax.report.run_files import RunFiles, numbers
from dinosr_jax.report.verdict import Answer, of_layer, sentences, system_name
from dinosr_jax.training.curves import PANELS

_PUBLISHED_FIELD = (400, 320)  # samples that a frame sees, and from one to the next
_MOST_ROWS = 300
# kind, metric, title, axis, caption
_BY_LAYER = (
    ("units", "pnmi", "PNMI: which layer's units tell most of phones", "PNMI",
     "Higher is better; over the line of MFCC the units are worth their training."),
    ("units", "phone_purity", "Phone purity: how clean each unit is", "phone purity",
     "The share of frames whose phone is the most frequent one of their unit. Higher is better."),
    ("units", "cluster_purity", "Cluster purity: how few units a phone has", "cluster purity",
     "The share of frames whose unit is the most frequent one of their phone. It falls with more "
     "units; compare equal numbers only."),
    ("frames", "accuracy", "Which layer holds phones: a linear probe", "frame accuracy",
     "The share of frames whose phone a linear classifier finds. Higher is better."),
    ("recognition", "per", "Phone error rate of a small recogniser",
     "phone error rate (1 is 100 %)",
     "Edit distance by length, of a recogniser on frozen features. Lower is better."),
)  # fmt: skip
_VERDICTS = {"bad": "bad", "watch": "to watch", "good": "good", "unknown": "not known"}
_NOTHING = "\u2013"
Part = tuple[Section, list[Picture]]


def lead(run: RunFiles, answer: Answer | None) -> tuple[dict[str, Any], list[Picture]]:
    """What stands on top: what this run is, and whether its units are any good."""
    verdicts = [sign.verdict for sign in health.signs(run)]
    counts = [f"{verdicts.count(v)} {name}" for v, name in _VERDICTS.items() if v in verdicts]
    picture = answer_picture(answer) if answer else None
    data = {
        "what_it_is": _what_it_is(run),
        "problems": run.problems,
        "picture": picture,
        "sentences": sentences(answer) if answer else [],
        "measured_on": _measured_on(answer.result, run) if answer else "",
        "while_training": _while_training(run),
        "commands": commands.evaluation(run, task="units"),
        "health": ", ".join(counts),
    }
    return data, [picture] if picture else []


def _what_it_is(run: RunFiles) -> list[str]:
    layers, width = run.whole("model", "num_layers"), run.whole("model", "width")
    books, size = run.whole("model", "num_codebooks"), run.whole("model", "codebook_size")
    texts = []
    if layers and width and books and size:
        names = run.codebook_names()
        where = names[0] if books == 1 else f"layers {names[0].split()[-1]} to {layers}"
        what = f"with {books} codebook{'s' * (books > 1)} of {size} codewords on {where}"
        objective = run.value("objective") or "dinosr"
        if objective == "data2vec":
            what = f"trained to regress the mean of {where}"
        elif objective == "spidr":
            what += ", each predicted from that layer of the student (SpidR)"
        texts.append(f"A DinoSR network of {layers} layers of width {width}, {what}.")
    last, planned = run.last_step(), run.whole("num_steps")
    data = run.value("data", "dataset"), run.value("data", "train_split")
    on = f" on {data[0]} ({data[1]})" if all(data) else ""
    if (run.folder / "config.py").is_file() and not run.records:
        texts.append(f"Imported from another project's checkpoint of {last or 0:,} updates.")
    elif last is None:
        texts.append("No update is recorded, and there is no checkpoint.")
    elif planned and last < planned:
        texts.append(
            f"{last:,} of {planned:,} updates{on} so far: it is under way, or was stopped."
        )
    else:
        texts.append(f"Trained for {last:,} updates{on}.")
    return texts


def _while_training(run: RunFiles) -> str:
    step, pnmi = health.latest(run.records, "eval_pnmi")
    if not pnmi:
        return ""
    best = max(range(len(pnmi)), key=pnmi.__getitem__)
    name = run.codebook_names()[best] if len(pnmi) > 1 else "the codebooks"
    return (
        f" While training, at update {step:,}, the best codes ({name}) had a PNMI of "
        f"{pnmi[best]:.3f}: 0 tells nothing of phones, 1 all."
    )


def curves(run: RunFiles, answer: Answer | None) -> Part:
    """Charts over the updates."""
    if not run.records:
        return Section("curves", "Curves", {"updates": "", "commands": commands.training(run)}), []
    baselines = (answer.mfcc, answer.untrained) if answer else ()
    levels = [(system_name(row["system"], "units"), row["pnmi"]) for row in baselines if row]
    options: dict[str, Any] = {
        "labels": run.codebook_names(),
        "codebook_size": run.whole("model", "codebook_size"),
        "published": run.value("objective") in (None, "dinosr"),
    }
    drawn = (
        curve_picture(run.records, panel, levels=levels if panel.name == "pnmi" else (), **options)
        for panel in PANELS
    )
    pictures = [picture for picture in drawn if picture]
    text = f"Updates {run.records[0]['step']:,} to {run.records[-1]['step']:,}."
    if run.num_lines > len(run.records) + 1:
        text += f" {len(run.records):,} of {run.num_lines:,} records are drawn."
    published = [
        (f"{p.step:,}", f"{p.loss:.2f}", f"{p.target_perplexity:g}", p.codewords)
        for p in published_results.PUBLISHED_CURVE
    ]
    data = {"updates": text, "pictures": pictures, "published": published}
    data |= {"has_pnmi": bool(health.latest(run.records, "eval_pnmi")[1])}
    return Section("curves", "Curves", data | {"source": published_results.SOURCE}), pictures


def inventory(run: RunFiles, answer: Answer | None) -> Part:
    """P(phone | code), a picture a codebook, and MFCC's for comparison."""
    pictures = []
    if answer:
        phones = answer.result.get("phones")
        phones = [str(phone) for phone in phones] if isinstance(phones, list) else []
        rows = [row for row in answer.result["rows"] if "counts" in row]
        own = [row for row in rows if row["system"] in ("codebook", "head", "kmeans")]
        for k, row in enumerate(own + [row for row in rows if row["system"] == "mfcc"][:1]):
            of = "units" if row["system"] == "codebook" else system_name(row["system"], "units")
            what = f"{of}{of_layer(row)}" if row["system"] != "mfcc" else f"{of}, to compare"
            pnmi = numbers(row, "pnmi")
            head = f"{what[0].upper()}{what[1:]}" + (f": PNMI {pnmi:.3f}" if pnmi else "")
            name = f"phones-{k + 1:02d}-{row['system']}"
            picture = phones_by_code(row["counts"], phones, name=name, title=head)
            if picture:
                pictures.append(picture)
    data = {
        "pictures": pictures,
        "measured_on": _measured_on(answer.result, run) if answer else "",
        "commands": commands.evaluation(run, task="units"),
    }
    return Section("phones", "What phone each code means", data), pictures


def by_layer(run: RunFiles) -> Part:
    """Unit quality, ABX, probe accuracy and phone error rate of each layer."""
    kinds = []
    for kind, title in _KINDS.items():
        results = _joined(run.of_kind(kind)) if kind == "abx" else run.of_kind(kind)
        how = commands.abx(run) if kind == "abx" else commands.evaluation(run, task=kind)
        shown = [
            {
                "measured_on": _measured_on(result, run),
                "pictures": _layer_pictures(result, suffix=f"-{k + 1}" if k else ""),
                **_numbers_of(result),
            }
            for k, result in enumerate(results)
        ]
        kinds.append({"title": title, "commands": how, "results": shown})
    systems = ("codebook", "mfcc", "untrained")
    names = (system_name(system, "") for system in systems)
    data = {
        "kinds": kinds,
        "superb_head": ("task", *names, "published, full size", "measured on"),
        "superb": _superb(run, systems),
        "published": published_results.PUBLISHED_RESULTS,
    }
    pictures = [p for kind in kinds for result in kind["results"] for p in result["pictures"]]
    return Section("layers", "Layer by layer", data), pictures


def _superb(run: RunFiles, systems: tuple[str, ...]) -> list[tuple]:
    """Rows of SUPERB's tasks: the newest figures of each."""
    rows = []
    for kind, (task, metric, published) in published_results.SUPERB.items():
        for result in run.of_kind(kind)[:1]:
            values = {row["system"]: numbers(row, metric) for row in result["rows"]}
            cells = (f"{values[s]:.1%}" if values.get(s) is not None else _NOTHING for s in systems)
            rows.append((f"{task} ({metric})", *cells, published or _NOTHING, result["data"]))
    return rows


def _joined(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """ABX results of the same items as one: each file holds one kind of features, or of units."""
    by_data: dict[str, dict[str, Any]] = {}
    for result in results:
        first = by_data.setdefault(str(result.get("data")), result | {"rows": []})
        first["rows"] = first["rows"] + result["rows"]
    return list(by_data.values())


_KINDS = {
    "units": "Units",
    "abx": "ABX: can like and unlike sounds be told apart?",
    "frames": "Phones of frames: a linear probe",
    "recognition": "Phone recognition",
}


def _layer_pictures(result: dict[str, Any], *, suffix: str) -> list[Picture]:
    charts = [
        (f"{result['kind']}-{metric}".replace("_", "-"), result["rows"], metric, *texts)
        for kind, metric, *texts in _BY_LAYER
        if result["kind"] == kind
    ]
    if result["kind"] == "abx":
        setting = lambda row: (str(row["speaker"]), str(row["context"]))
        for k, (speaker, context) in enumerate(dict.fromkeys(map(setting, result["rows"]))):
            rows = [row for row in result["rows"] if setting(row) == (speaker, context)]
            people = {"within": "one speaker", "across": "across speakers"}.get(speaker, speaker)
            where = {"any": "any context"}.get(context, context)
            title, axis = f"ABX error, {people}, {where}", "error (0.5 is chance)"
            caption = (
                "How often a sound is nearer to another phone than to its own. Lower is better."
            )
            charts.append((f"abx-{k + 1}", rows, "error", title, axis, caption))
    drawn = (
        layers_picture(
            rows,
            kind=result["kind"],
            metric=metric,
            name=f"layers-{name}{suffix}",
            title=title,
            axis=axis,
            caption=caption,
        )  # fmt: skip
        for name, rows, metric, title, axis, caption in charts
    )
    return [picture for picture in drawn if picture]


def _numbers_of(result: dict[str, Any]) -> dict[str, Any]:
    """Caption, head and rows of a table of all numbers of a result."""
    rows = result["rows"][:_MOST_ROWS]
    hidden = ("system", "layer", "counts")
    names = list(dict.fromkeys(name for row in rows for name in row if name not in hidden))
    lines = [
        (
            system_name(row["system"], result["kind"]),
            "" if row.get("layer") is None else row["layer"],
            *(_written(row.get(name)) for name in names),
        )
        for row in rows
    ]
    return {
        "head": ("system", "layer", *(name.replace("_", " ") for name in names)),
        "caption": f"{len(lines)} of {len(result['rows'])} rows; {result.get('rule', '')}",
        "rows": lines,
    }


def _written(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:200]


def _measured_on(result: dict[str, Any], run: RunFiles) -> str:
    parts = [str(result.get(name, "")) for name in ("title", "data", "rule")]
    step, last = result.get("step"), run.last_step()
    parts.append(f"after {step:,} updates" if isinstance(step, int) else "")
    text = "Measured: " + "; ".join(part for part in parts if part) + "."
    if isinstance(step, int) and last is not None and step < last:
        text += f" The run is at update {last:,} by now; measure it again."
    return text


def utterance(run: RunFiles, answer: Answer | None) -> Part:
    """One utterance to see and to hear."""
    picture, data = None, {"commands": commands.evaluation(run, task="units")}
    if run.utterance is not None:
        ranks = {}
        for row in answer.result["rows"] if answer else ():
            rank = code_ranks(row.get("counts")) if row["system"] == "codebook" else None
            if rank is not None and isinstance(row.get("layer"), int):
                ranks[row["layer"]] = rank
        picture = utterance_picture(run.utterance, receptive_field=frame_timing(run), ranks=ranks)
        data["text"] = f"{run.utterance.name}: {run.utterance.text}".rstrip(": ")
        data |= {"name": run.utterance.name, "wav": to_wav(run.utterance.waveform)}
    section = Section("utterance", "One utterance, to see and to hear", data | {"picture": picture})
    return section, [picture] if picture else []


def frame_timing(run: RunFiles) -> tuple[int, int]:
    """Samples that a frame sees, and from one to the next; the published ones if not known."""
    layers = run.value("model", "conv_layers")
    try:
        field, hop = receptive_field([tuple(map(int, layer)) for layer in layers])
    except (TypeError, ValueError):
        return _PUBLISHED_FIELD
    return (field, hop) if field > 0 and hop > 0 else _PUBLISHED_FIELD


def health_section(run: RunFiles) -> Part:
    """Signs of a collapse, and what the codes follow instead of phones."""
    table = health.by_codebook(run)
    picture = information_picture(table)
    pictures = [picture] if picture else []
    rows = [
        (name, *(f"{v[what]:.1%}" if what in v else _NOTHING for what in health.FOLLOWED))
        for name, v in table
    ]
    data = {
        "signs": health.signs(run),
        "verdicts": _VERDICTS,
        "pictures": pictures,
        "head": ("codebook", *health.FOLLOWED),
        "rows": rows,
    }
    return Section("health", "Health", data), pictures
