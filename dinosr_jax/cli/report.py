"""The command that shows a run: `report`."""

from pathlib import Path

import click

from dinosr_jax.cli.errors import one_line
from dinosr_jax.cli.options import argument, output
from dinosr_jax.errors import UserError


@click.command()
@argument("run")
@output("Folder to write.  [default: RUN/report]")
def report(run: Path, output: Path | None) -> None:
    """Show a run as one HTML page: curves, codes and phones, figures by layer, health.

    Reads the files of RUN (a workdir; training may be under way), among them the results of
    `evaluate` in RUN/evaluation. The page needs no network; its figures lie beside it as PNG. What
    is not measured is said in its place, with the command that measures it.
    """
    from dinosr_jax.report.page import write_report

    with one_line(UserError):
        written = write_report(run, output)
    for problem in written.problems:
        click.echo(f"warning: {problem}", err=True)
    for sentence in written.answer:
        click.echo(sentence)
    size = written.path.stat().st_size / 1e6
    click.echo(
        f"{written.path}: {len(written.figures)} figures, {size:.1f} MB; open it in a browser"
    )
