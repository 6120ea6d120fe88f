"""How a command line is read: lists piece by piece, and one line where tyro would draw a box."""

import contextlib
import dataclasses
import inspect
import io
import re
import sys
import typing
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from typing import Any

import tyro

from perturbjax.cli.values import make_registry


class UsageError(Exception):
    """Arguments that cannot be read; the message is one line."""


def parse(commands: Mapping[str, type], argv: Sequence[str], prog: str, description: str) -> Any:
    """Read ``argv`` into one of the dataclasses.

    Args:
        commands: subcommand name -> frozen dataclass; its docstring is the help text.
        argv: arguments without the program's name.
        prog: name of the program.
        description: shown by ``--help``, beside the first line of each dataclass's docstring.

    Raises:
        UsageError: unknown or missing arguments, or values of another type.
        SystemExit: after ``--help``.
        BrokenPipeError: whoever reads the help has seen enough.
    """
    for word in argv:
        if word.encode(errors="replace").decode() != word:
            raise UsageError(f"{word[:80]!a}: an argument must be UTF-8 text")
    members = [
        typing.Annotated[kind, tyro.conf.subcommand(name, prefix_name=False, description=_description(kind, name in argv))]
        for name, kind in commands.items()
    ]
    command = next((word for word in argv if word in commands), "")
    kinds = _flag_kinds(commands[command]) if command else {}
    words = join_lists(argv, kinds)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                typing.Union[tuple(members)],  # type: ignore[arg-type]  # noqa: UP007 (made at run time)
                args=words,
                prog=prog,
                description=description,
                registry=make_registry(),
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            sys.stdout.flush()  # a reader that has gone is met here, where the caller sees it, and not at exit
            raise
        known = [f"--{name.replace('_', '-')}" for name in kinds] or list(commands)
        message = _with_near_names(_one_line(said.getvalue()), known)
        asked = " ".join((prog, command, *islice(_chosen(commands[command], argv), 1)) if command else (prog,))
        raise UsageError(f"{message}; see {asked} --help") from None


def join_lists(argv: Sequence[str], kinds: Mapping[str, Any]) -> list[str]:
    """Arguments in which the flag of a list stands once, with all that it was given. Of any other flag the last counts, as is usual.

    Args:
        argv: the words.
        kinds: name of each flag -> type of its value.

    >>> join_lists(["evaluate", "RUN", "--base", "a", "--base=b,c"], {"base": tuple[str, ...]})
    ['evaluate', 'RUN', '--base=a,b,c']
    """
    found: list[str] = []
    places: dict[str, int] = {}
    words = deque(argv)
    while words:
        word = words.popleft()
        flag, given, value = word.partition("=")
        name = flag[2:].replace("-", "_") if flag.startswith("--") else ""
        if name not in kinds or not _is_list(kinds[name]) or not (given or (words and not words[0].startswith("--"))):
            found.append(word)  # tyro says what is wrong with one that has no value
            continue
        value = value if given else words.popleft()
        if name in places:
            found[places[name]] += f",{value}"
        else:
            places[name] = len(found)
            found.append(f"{flag}={value}")
    return found


def _is_list(kind: Any) -> bool:
    return any(typing.get_origin(each) is tuple for each in (kind, *typing.get_args(kind)))


def _chosen(kind: type, argv: Sequence[str]) -> Iterator[str]:
    """The subcommand among the words, of a command that has some."""
    hints = typing.get_type_hints(kind, include_extras=True).values()
    members = [each for hint in hints for each in typing.get_args(hint) if typing.get_origin(each) is typing.Annotated]
    names = {getattr(extra, "name", None) for each in members for extra in each.__metadata__}
    return (word for word in argv if word in names)


def _with_near_names(message: str, known: Sequence[str]) -> str:
    """The message about unknown words, with the names that they are most like."""
    words = message.removeprefix("Unrecognized options: ").split(", ") if message.startswith("Unrecognized options: ") else []
    near = dict.fromkeys(name for word in words for name in get_close_matches(word[:80].partition("=")[0], known, n=1))
    return f"{message} (did you mean {' '.join(near)}?)" if near else message


def _description(kind: type, whole: bool) -> str:
    """The docstring for the command's own help, its first line for the list of commands."""
    text = inspect.getdoc(kind) or ""
    return text if whole else text.splitlines()[0]


def with_flags(message: str, names: Collection[str]) -> str:
    """A message of the library in the words of the command line: an argument in backquotes, or one that the message begins with, becomes
    its flag.

    >>> with_flags("`top_k` 9: at most `population` 8 can be kept", ())
    '--top-k 9: at most --population 8 can be kept'
    >>> with_flags("model 'x.gguf': not a GGUF file", {"model"})
    '--model x.gguf: not a GGUF file'
    """
    first = re.match(r"([a-z_]+) '([^']*)'(?=:)", message)
    if first and first[1] in names:
        message = f"--{first[1].replace('_', '-')} {first[2]}{message[first.end() :]}"
    return re.sub(r"`([a-z_]+)`", lambda name: f"--{name[1].replace('_', '-')}", message)


def flag_names(kind: type) -> set[str]:
    """Names of the fields of a command's dataclass, those of the dataclasses in it included, and of its subcommands."""
    return {*_flag_kinds(kind)}


def _flag_kinds(kind: type) -> dict[str, Any]:
    """The same names -> the types of the fields."""
    found: dict[str, Any] = {}
    kinds = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        default = field.default_factory() if callable(field.default_factory) else None
        members = () if _is_list(kinds[field.name]) else typing.get_args(kinds[field.name])
        subcommands = [each for each in members if isinstance(each, type) and dataclasses.is_dataclass(each)]
        if dataclasses.is_dataclass(default):
            found |= _flag_kinds(type(default))
        elif subcommands:
            found |= {name: each for subcommand in subcommands for name, each in _flag_kinds(subcommand).items()}
        else:
            found[field.name] = kinds[field.name]
    return found


def _one_line(box: str) -> str:
    """The message inside tyro's box, without title, frame and what follows the first rule below the message.

    Where stdout is not UTF-8 the box has no sides, and its title is a line with a rule under it.
    """
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    inside = [re.sub(r"^│|│$", "", line) for line in plain.splitlines() if line.strip() and line[0] not in "╭╰"]
    rules = [number for number, line in enumerate(inside) if set(line.strip()) <= set("─-")]
    first = 2 if rules[:1] == [1] and "╭" not in plain else 0
    message = inside[first : next((number for number in rules if number >= first), len(inside))]
    if message and message[0].strip().startswith("Missing from"):
        # Below it one line per argument, each followed by its help, which is indented further.
        indent = len(message[0]) - len(message[0].lstrip()) + 4
        missing = [line.strip() for line in message[1:] if len(line) - len(line.lstrip()) == indent]
        return f"required: {', '.join(missing)}"
    text = " ".join(line.strip() for line in message).strip().rstrip(".")
    value = re.search(r"Error parsing (\S+): (?:invalid literal for int\(\) with base 10: |could not convert string to float: )(.*)", text)
    if value:
        kind = "an integer" if "invalid literal" in text else "a number"
        return f"{value[1]} {value[2]}: {kind} is required"
    return text or " ".join(box.split()) or "the arguments cannot be read"
