"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """A user's mistake, in one sentence: what was found, what was expected, what to do.

    The command line prints it without a traceback and exits with status 2.
    """
