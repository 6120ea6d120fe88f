"""The one exception that means "the user gave us something we cannot use"."""


class InputError(ValueError):
    """Bad input. The message is one line: the argument, its value, what is required, what to do.

    The command line prints it and exits with code 2; every other exception is a failure (code 1).
    """
