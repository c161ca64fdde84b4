"""Errors of commands, for people: one line, and the exit status."""

import contextlib
import logging
from collections.abc import Iterator

import click

from dinosr_jax.errors import UserError

# settings and files of others raise the last two, with texts as clear
EXPECTED = (UserError, ValueError, OSError)


@contextlib.contextmanager
def one_line(*expected: type[Exception]) -> Iterator[None]:
    """Errors (those given, else all of `EXPECTED`) become one line; Ctrl-C too, with status 130."""
    expected = expected or EXPECTED
    try:
        yield
    except expected as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        stopped = click.ClickException("interrupted; run the same command again")
        stopped.exit_code = 130
        raise stopped from None


def silence_absl() -> None:
    """Hides the notices of orbax, which are not for people."""
    logging.getLogger("absl").setLevel(logging.ERROR)
