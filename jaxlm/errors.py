"""The one exception for what a user can mend."""


class UserError(Exception):
    """One clear sentence: what is wrong, where, and what to do.

    `cli.main` prints it without a traceback and exits with status 1. Anything else that is raised is a bug of ours.
    """
