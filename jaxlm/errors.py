"""The one exception for errors that a user can fix."""


class UserError(Exception):
    """An error in one clear sentence: what is wrong, where, and how to fix it.

    `cli.main` prints it without a traceback and returns the exit status 1. Any other exception is a bug in jaxlm.
    """
