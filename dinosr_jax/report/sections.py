"""The parts of a report: each from a run's files to HTML and figures."""

from typing import Any

from dinosr_jax.model.feature_encoder import receptive_field
from dinosr_jax.report import commands, health, markup, published_results
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
    (
        "units",
        "pnmi",
        "PNMI: which layer's units tell most of phones",
        "PNMI",
        "Higher is better; over the line of MFCC the units are worth their training.",
    ),
    (
        "units",
        "phone_purity",
        "Phone purity: how clean each unit is",
        "phone purity",
        "The share of frames whose phone is the most frequent one of their unit. Higher is better.",
    ),
    (
        "units",
        "cluster_purity",
        "Cluster purity: how few units a phone has",
        "cluster purity",
        "The share of frames whose unit is the most frequent one of their phone. It falls with "
        "more units; compare equal numbers only.",
    ),
    (
        "frames",
        "accuracy",
        "Which layer holds phones: a linear probe",
        "frame accuracy",
        "The share of frames whose phone a linear classifier finds. Higher is better.",
    ),
    (
        "recognition",
        "per",
        "Phone error rate of a small recogniser",
        "phone error rate (1 is 100 %)",
        "Edit distance by length, of a recogniser on frozen features. Lower is better.",
    ),
)


def lead(run: RunFiles, answer: Answer | None) -> tuple[str, list[Picture]]:
    """What stands on top: what this run is, and whether its units are any good."""
    parts = [markup.paragraph(text) for text in _what_it_is(run)]
    if run.problems:
        items = "".join(f"<li>{markup.escape(problem)}</li>" for problem in run.problems)
        parts.append(f'<div class="problems"><p>Not all could be read:</p><ul>{items}</ul></div>')
    pictures = []
    if answer:
        parts += [markup.paragraph(text, kind="answer") for text in sentences(answer)]
        parts.append(markup.paragraph(_measured_on(answer.result, run)))
        pictures.append(answer_picture(answer))
    else:
        parts.append(_unanswered(run))
    verdicts = [sign.verdict for sign in health.signs(run)]
    counts = [f"{verdicts.count(v)} {name}" for v, name in _VERDICTS.items() if v in verdicts]
    parts.append(f'<p>Signs of health: {", ".join(counts)}; <a href="#health">see which</a>.</p>')
    body = "".join(map(markup.figure, pictures))
    return f"<div>{''.join(parts)}</div>{body}", pictures


_VERDICTS = {"bad": "bad", "watch": "to watch", "good": "good", "unknown": "not known"}


def _what_it_is(run: RunFiles) -> list[str]:
    layers, width = run.whole("model", "num_layers"), run.whole("model", "width")
    books, size = run.whole("model", "num_codebooks"), run.whole("model", "codebook_size")
    found = []
    if layers and width and books and size:
        names = run.codebook_names()
        where = names[0] if books == 1 else f"layers {names[0].split()[-1]} to {layers}"
        what = f"with {books} codebook{'s' * (books > 1)} of {size} codewords on {where}"
        objective = run.value("objective") or "dinosr"
        if objective == "data2vec":
            what = f"trained to regress the mean of {where}"
        elif objective == "spidr":
            what += ", each predicted from that layer of the student (SpidR)"
        found.append(f"A DinoSR network of {layers} layers of width {width}, {what}.")
    last, planned = run.last_step(), run.whole("num_steps")
    data = run.value("data", "dataset"), run.value("data", "train_split")
    on = f" on {data[0]} ({data[1]})" if all(data) else ""
    if (run.folder / "config.py").is_file() and not run.records:
        found.append(f"Imported from another project's checkpoint of {last or 0:,} updates.")
    elif last is None:
        found.append("No update is recorded, and there is no checkpoint.")
    elif planned and last < planned:
        found.append(
            f"{last:,} of {planned:,} updates{on} so far: it is under way, or was stopped."
        )
    else:
        found.append(f"Trained for {last:,} updates{on}.")
    return found


def _unanswered(run: RunFiles) -> str:
    step, pnmi = health.latest(run.records, "eval_pnmi")
    what = "How good the units are, beside MFCC and the untrained network, is not measured."
    if pnmi:
        best = max(range(len(pnmi)), key=pnmi.__getitem__)
        name = run.codebook_names()[best] if len(pnmi) > 1 else "the codebooks"
        what += (
            f" While training, at update {step:,}, the best codes ({name}) had a PNMI of "
            f"{pnmi[best]:.3f}: 0 tells nothing of phones, 1 all."
        )
    return markup.missing(what, commands.evaluation(run, task="units"))


def curves(run: RunFiles, answer: Answer | None) -> tuple[Section, list[Picture]]:
    """Charts over the updates."""
    if not run.records:
        what = "Nothing is recorded of the training: there is no metrics.jsonl with records."
        return Section("curves", "Curves", markup.missing(what, commands.training(run))), []
    rows = (answer.mfcc, answer.untrained) if answer else ()
    levels = [(system_name(row["system"], "units"), row["pnmi"]) for row in rows if row]
    options: dict[str, Any] = {
        "labels": run.codebook_names(),
        "codebook_size": run.whole("model", "codebook_size"),
        "published": run.value("objective") in (None, "dinosr"),
    }
    pictures = []
    for panel in PANELS:
        own = levels if panel.name == "pnmi" else ()
        picture = curve_picture(run.records, panel, levels=own, **options)
        if picture:
            pictures.append(picture)
    text = f"Updates {run.records[0]['step']:,} to {run.records[-1]['step']:,}."
    if run.num_lines > len(run.records) + 1:
        text += f" {len(run.records):,} of {run.num_lines:,} records are drawn."
    body = markup.paragraph(text) + markup.figures(pictures)
    if not health.latest(run.records, "eval_pnmi")[1]:
        what = (
            "PNMI over the updates is not recorded: the held-out speech of this run had no phones."
        )
        body += markup.missing(what, [])
    return Section("curves", "Curves", body + _published_curve()), pictures


def _published_curve() -> str:
    rows = [
        (f"{p.step:,}", f"{p.loss:.2f}", f"{p.target_perplexity:g}", p.codewords)
        for p in published_results.PUBLISHED_CURVE
    ]
    head = ("updates", "loss (nats)", "target perplexity (of 256)", "codewords that occur")
    caption = "A healthy LibriSpeech run, as published"
    body = markup.table(caption, head, rows) + markup.paragraph(published_results.SOURCE)
    return markup.details("The published run in numbers", body)


def inventory(run: RunFiles, answer: Answer | None) -> tuple[Section, list[Picture]]:
    """P(phone | code), a picture a codebook, and MFCC's for comparison."""
    title, pictures = "What phone each code means", []
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
    if not pictures:
        what = "How often each code falls on each phone is not counted."
        body = markup.missing(what, commands.evaluation(run, task="units"))
    else:
        body = markup.paragraph(_STAIRCASE) + markup.figures(pictures)
        body += markup.paragraph(_measured_on(answer.result, run))
    return Section("phones", title, body), pictures


_STAIRCASE = (
    "Each column is a code, each row a phone, each dark cell the phone that a code stands for. A "
    "dark staircase from top left to bottom right is an inventory of phones. Evenly pale columns, "
    "or all codes in the first rows, are codes that know nothing of phones."
)


def by_layer(run: RunFiles) -> tuple[Section, list[Picture]]:
    """Unit quality, ABX, probe accuracy and phone error rate of each layer."""
    pictures, body = [], []
    for kind, title in _KINDS.items():
        results = _joined(run.of_kind(kind)) if kind == "abx" else run.of_kind(kind)
        body.append(markup.heading(title))
        if not results:
            how = commands.abx(run) if kind == "abx" else commands.evaluation(run, task=kind)
            body.append(markup.missing("Not measured. These commands do it:", how))
        for k, result in enumerate(results):
            found = _layer_pictures(result, suffix=f"-{k + 1}" if k else "")
            pictures += found
            text = _measured_on(result, run)
            body += [markup.paragraph(text), markup.figures(found), _rows(result)]
    body.append(_superb(run))
    head = ("what", "figure", "measured on")
    caption = "Published figures of the full-size network, LibriSpeech"
    body.append(markup.table(caption, head, published_results.PUBLISHED_RESULTS))
    return Section("layers", "Layer by layer", "".join(body)), pictures


def _superb(run: RunFiles) -> str:
    """SUPERB's tasks side by side, the newest figures of each; nothing where none is measured."""
    systems, rows = ("codebook", "mfcc", "untrained"), []
    for kind, (task, metric, published) in published_results.SUPERB.items():
        for result in run.of_kind(kind)[:1]:
            found = {row["system"]: numbers(row, metric) for row in result["rows"]}
            cells = (f"{found[s]:.1%}" if found.get(s) is not None else "\u2013" for s in systems)
            rows.append((f"{task} ({metric})", *cells, published or "\u2013", result["data"]))
    if not rows:
        return ""
    names = (system_name(system, "") for system in systems)
    head = ("task", *names, "published, full size", "measured on")
    return markup.table("SUPERB's tasks, on frozen features", head, rows)


def _joined(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """ABX results of the same items as one: each file holds one kind of features, or of units."""
    found: dict[str, dict[str, Any]] = {}
    for result in results:
        first = found.setdefault(str(result.get("data")), result | {"rows": []})
        first["rows"] = first["rows"] + result["rows"]
    return list(found.values())


_KINDS = {
    "units": "Units",
    "abx": "ABX: can like and unlike sounds be told apart?",
    "frames": "Phones of frames: a linear probe",
    "recognition": "Phone recognition",
}


def _layer_pictures(result: dict[str, Any], *, suffix: str) -> list[Picture]:
    found = []
    for kind, metric, title, axis, caption in _BY_LAYER:
        if result["kind"] == kind:
            text = {"kind": kind, "title": title, "axis": axis, "caption": caption}
            name = f"layers-{kind}-{metric}{suffix}".replace("_", "-")
            found.append(layers_picture(result["rows"], metric=metric, name=name, **text))
    if result["kind"] == "abx":
        settings = dict.fromkeys((str(r["speaker"]), str(r["context"])) for r in result["rows"])
        for k, (speaker, context) in enumerate(settings):
            rows = [
                row
                for row in result["rows"]
                if (str(row["speaker"]), str(row["context"])) == (speaker, context)
            ]
            people = {"within": "one speaker", "across": "across speakers"}.get(speaker, speaker)
            where = {"any": "any context"}.get(context, context)
            text = {
                "kind": "abx",
                "title": f"ABX error, {people}, {where}",
                "axis": "error (0.5 is chance)",
                "caption": "How often a sound is nearer to another phone than to its own. Lower is "
                "better.",
            }
            name = f"layers-abx-{k + 1}{suffix}"
            found.append(layers_picture(rows, metric="error", name=name, **text))
    return [picture for picture in found if picture]


def _rows(result: dict[str, Any]) -> str:
    """All numbers of a result."""
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
    head = ("system", "layer", *(name.replace("_", " ") for name in names))
    caption = f"{len(lines)} of {len(result['rows'])} rows; {result.get('rule', '')}"
    return markup.details("All numbers", markup.table(caption, head, lines))


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


def utterance(run: RunFiles, answer: Answer | None) -> tuple[Section, list[Picture]]:
    """One utterance to see and to hear."""
    title = "One utterance, to see and to hear"
    if run.utterance is None:
        what = "There is no utterance to show."
        body = markup.missing(what, commands.evaluation(run, task="units"))
        return Section("utterance", title, body), []
    ranks = {}
    for row in answer.result["rows"] if answer else ():
        rank = code_ranks(row.get("counts")) if row["system"] == "codebook" else None
        if rank is not None and isinstance(row.get("layer"), int):
            ranks[row["layer"]] = rank
    picture = utterance_picture(run.utterance, receptive_field=frame_timing(run), ranks=ranks)
    text = f"{run.utterance.name}: {run.utterance.text}".rstrip(": ")
    wav = to_wav(run.utterance.waveform)
    listen = markup.audio(wav, f"recording {run.utterance.name}")
    body = markup.paragraph(text) + listen + markup.figure(picture)
    return Section("utterance", title, body), [picture]


def frame_timing(run: RunFiles) -> tuple[int, int]:
    """Samples that a frame sees, and from one to the next; the published ones if not known."""
    layers = run.value("model", "conv_layers")
    try:
        field, hop = receptive_field([tuple(map(int, layer)) for layer in layers])
    except (TypeError, ValueError):
        return _PUBLISHED_FIELD
    return (field, hop) if field > 0 and hop > 0 else _PUBLISHED_FIELD


def health_section(run: RunFiles) -> tuple[Section, list[Picture]]:
    """Signs of a collapse, and what the codes follow instead of phones."""
    items = "".join(
        f'<li class="{sign.verdict}"><p class="name">{markup.escape(sign.name)}: '
        f"{markup.escape(_VERDICTS[sign.verdict])}</p>"
        f"<p>{markup.escape(sign.value)}</p>"
        f'<p class="bad-one">A bad one: {markup.escape(sign.bad)}</p></li>'
        for sign in health.signs(run)
    )
    table = health.by_codebook(run)
    picture = information_picture(table)
    rows = [
        (name, *(f"{v[what]:.1%}" if what in v else "\u2013" for what in health.FOLLOWED))
        for name, v in table
    ]
    head = ("codebook", *health.FOLLOWED)
    body = markup.paragraph(
        "The bounds are rules of thumb; figures are of "
        "held-out speech where it was evaluated, else of the last recorded batch, which is small."
    )
    body += f'<ul class="signs">{items}</ul>'
    if picture:
        body += markup.figures([picture])
        body += markup.table("Share of information told by the codes, last evaluation", head, rows)
    return Section("health", "Health", body), [picture] if picture else []
