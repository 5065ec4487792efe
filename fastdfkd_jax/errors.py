"""The one exception class for what a user can mend."""


class UserError(Exception):
    """A mistake of the input, the configuration or the environment, not of this program.

    The message is one line: what was expected, what was found, and how to mend it. Commands print
    it without a traceback and leave with exit status 2; every other exception is a bug and keeps
    its traceback.
    """


EXIT_STATUS = 2
