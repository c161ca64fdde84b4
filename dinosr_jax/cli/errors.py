"""Errors of commands, for people: one line, and the exit status."""

import contextlib
from collections.abc import Iterator

import click

from dinosr_jax.errors import UserError

# settings and files of others raise the last two, with texts as clear
EXPECTED = (UserError, ValueError, OSError)


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Expected errors become one line; Ctrl-C does too, with the status 130."""
    try:
        yield
    except EXPECTED as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        stopped = click.ClickException("interrupted; run the same command again")
        stopped.exit_code = 130
        raise stopped from None
