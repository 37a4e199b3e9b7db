"""The one exception that users see: a clear line that names the thing and the mend."""


class UserError(Exception):
    """Bad input or environment. The message is one line: what is wrong, where, and how to mend it.

    The CLI prints it after ``error:`` and exits with 2; a traceback means a bug in the harness.
    """
