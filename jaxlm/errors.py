"""Exceptions for errors that a user can fix."""


class UserError(Exception):
    """An error in one clear sentence: what is wrong, where, and how to fix it.

    `cli.main` prints it without a traceback and returns the exit status 1. Any other exception is a bug in jaxlm.
    """


class NotFinite(UserError):
    """An output of a model that is NaN or infinite, although its parameters are finite; `what` names the output."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"{what} is not finite: the model's parameters are damaged or too large")
