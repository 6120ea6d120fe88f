"""The one exception that means "the user gave us something we cannot use", and other exceptions said in one line of its message."""


class InputError(ValueError):
    """Bad input. The message is one line: the argument, its value, what is required, what to do.

    The command line prints it and exits with code 2; every other exception is a failure (code 1).
    """


def one_line(error: BaseException, length: int = 300) -> str:
    """Type and message of an exception on one line, cut to ``length`` characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:length]


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, cut to 200 characters; its type where it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
