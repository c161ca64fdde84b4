"""A run as one page that a person looks at: report.html, and its figures as PNG beside it."""

import datetime
from pathlib import Path
from typing import NamedTuple

from dinosr_jax import __version__, files
from dinosr_jax.report import configuration, health, sections
from dinosr_jax.report.figures.drawing import SOFTWARE, Picture, style
from dinosr_jax.report.markup import page
from dinosr_jax.report.run_files import ReportError, read_run
from dinosr_jax.report.verdict import find_answer, sentences


class Written(NamedTuple):
    """What a report has become."""

    path: Path  # of report.html
    figures: list[Path]
    answer: list[str]  # sentences
    problems: list[str]  # files that could not be read


def write_report(run: str | Path, output: str | Path | None = None) -> Written:
    """Writes the report of a run, under way, finished or imported; reads its files alone.

    Figures of a report before that are no longer there are removed.

    Args:
      run: Workdir.
      output: Folder; RUN/report if None.

    Raises:
      ReportError: It is no run, or the report cannot be written.
    """
    files = read_run(Path(run))
    folder = Path(output) if output is not None else files.folder / "report"
    answer = find_answer(files.of_kind("units"), health.validated(files))
    with style():
        lead, pictures = sections.lead(files, answer)
        parts = [
            sections.curves(files, answer),
            sections.inventory(files, answer),
            sections.by_layer(files),
            sections.utterance(files, answer),
            sections.health_section(files),
        ]
    pictures = pictures + [picture for _, some in parts for picture in some]
    text = page(
        title=f"Report of {files.folder.absolute().name}",
        lead=lead,
        sections=[*(section for section, _ in parts), configuration.setup(files)],
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
    )
    written = _write(folder, text, pictures)
    answers = sentences(answer) if answer else []
    return Written(folder / "report.html", written, answers, files.problems)


def _write(folder: Path, text: str, pictures: list[Picture]) -> list[Path]:
    """Writes page and figures, each whole or not at all; removes the figures of before."""
    contents = {f"{picture.name}.png": picture.png for picture in pictures}
    narrow = {f"{p.name}-narrow.png": p.narrow_png for p in pictures if p.narrow_png}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.png"):
            if path.name not in contents | narrow and SOFTWARE.encode() in path.read_bytes()[:512]:
                path.unlink()
        for name, content in (contents | narrow | {"report.html": text.encode()}).items():
            with files.replacing(folder / name, sync=False) as file:
                file.write(content)
    except OSError as error:
        raise ReportError(
            f"the report cannot be written to {folder} ({error.strerror or error}); make room, or "
            "choose another folder with --output"
        ) from error
    return [folder / name for name in contents | narrow]
