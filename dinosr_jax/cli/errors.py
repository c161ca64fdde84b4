"""Errors of commands, for people: one line, and the exit status."""

import contextlib
from collections.abc import Iterator

import click


@contextlib.contextmanager
def one_line(*kinds: type[Exception]) -> Iterator[None]:
    """Errors of these kinds become one line; Ctrl-C does too, with the status 130."""
    try:
        yield
    except kinds as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        stopped = click.ClickException("interrupted; run the same command again")
        stopped.exit_code = 130
        raise stopped from None
