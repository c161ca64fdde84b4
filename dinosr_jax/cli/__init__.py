"""The tools, as commands: `python -m dinosr_jax COMMAND --help`. Training is `main.py`."""

import click

from dinosr_jax.cli.abx import abx_command, items_command
from dinosr_jax.cli.data import prepare
from dinosr_jax.cli.evaluation import evaluate_units
from dinosr_jax.cli.inference import extract, units
from dinosr_jax.cli.interop import export, import_command
from dinosr_jax.cli.probes import frames_command, recognition_command, run
from dinosr_jax.cli.recognition import ngram, sweep, transcribe, wer_command
from dinosr_jax.cli.report import report
from dinosr_jax.cli.superb import asr, intent, keywords, slots
from dinosr_jax.cli.training import compile_command, scale


@click.group()
def evaluate() -> None:
    """Measure what was learnt, against phones."""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """DinoSR in JAX: tools around training (training itself is main.py)."""


for command in (prepare, compile_command, scale, extract, units, evaluate, import_command, export):
    cli.add_command(command)
for command in (transcribe, sweep, ngram, report):
    cli.add_command(command)
for command in (
    evaluate_units,
    abx_command,
    items_command,
    run,
    frames_command,
    recognition_command,
):
    evaluate.add_command(command)
for command in (keywords, intent, slots, asr, wer_command):
    evaluate.add_command(command)
