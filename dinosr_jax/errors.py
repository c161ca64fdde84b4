"""Errors whose text is for the person who runs a command."""


class UserError(ValueError):
    """What that person can mend: it says what was found, where, and what was expected."""
