"""How arguments are read: comma lists, plain optional values, and one line where tyro would draw a box."""

import contextlib
import dataclasses
import inspect
import io
import re
import sys
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import tyro

from perturbjax.noise.spec import SCALES, Rule

_OPTIONAL: dict[type, str] = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
_SCALE = "|".join((*SCALES, "exclude"))
_RULE = re.compile(rf"(?P<pattern>.+?)=(?P<scale>{_SCALE})(?:,|$)")
_LISTS: dict[Any, tuple[type, str]] = {tuple[float, ...]: (float, "FLOAT"), tuple[int, ...]: (int, "INT"), tuple[str, ...]: (str, "TEXT")}

_COMMA = re.compile(r",(?![^()]*\)|[^{}]*\}|[^\[\]]*\])")
"""Between items of a list; one between brackets belongs to its item: ``my_task.py:Sums(2, 3)``."""
_RULE_OR_REGEX = re.compile(rf"(?P<pattern>.+?)(?:=(?P<scale>{_SCALE}))?(?:{_COMMA.pattern}|$)")


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
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                typing.Union[tuple(members)],  # type: ignore[arg-type]  # noqa: UP007 (made at run time)
                args=list(argv),
                prog=prog,
                description=description,
                registry=_registry(),
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            sys.stdout.flush()  # a reader that has gone is met here, where the caller sees it, and not at exit
            raise
        command = next((word for word in argv if word in commands), "")
        known = [f"--{name.replace('_', '-')}" for name in flag_names(commands[command])] if command else list(commands)
        message = _with_near_names(_one_line(said.getvalue()), known)
        raise UsageError(f"{message}; see {f'{prog} {command}'.strip()} --help") from None


def _with_near_names(message: str, known: Sequence[str]) -> str:
    """The message about unknown words, with the names that they are most like."""
    words = message.removeprefix("Unrecognized options: ").split(", ") if message.startswith("Unrecognized options: ") else []
    near = dict.fromkeys(name for word in words for name in get_close_matches(word[:80].partition("=")[0], known, n=1))
    return f"{message} (did you mean {' '.join(near)}?)" if near else message


def _description(kind: type, whole: bool) -> str:
    """The docstring for the command's own help, its first line for the list of commands."""
    text = inspect.getdoc(kind) or ""
    return text if whole else text.splitlines()[0]


def _registry() -> tyro.constructors.ConstructorRegistry:
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def one_word(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
        if info.type == tuple[float, ...] | Literal["auto"]:
            return _spec("auto|FLOAT,FLOAT,...", _floats_or_auto, (tuple, str), lambda value: value if value == "auto" else _joined(value))
        # In a subcommand tyro may write typing.Tuple, which is equal to no tuple[...].
        listed = tuple[typing.get_args(info.type)] if typing.get_origin(info.type) is tuple else None
        if listed in _LISTS:
            kind, name = _LISTS[listed]
            return _spec(f"{name},{name},...", partial(_items, kind), tuple, _joined)
        if info.type == tuple[Rule, ...]:
            return _spec(f"REGEX={_SCALE},...", parse_rules, tuple, lambda rules: _joined(rules) or "none")
        if info.type == tuple[Rule | str, ...]:
            return _spec("REGEX|REGEX=exclude,...", partial(parse_rules, bare=True), tuple, lambda rules: _joined(rules) or "none")
        # tyro shows "{None}|INT" and reads the word None; leaving the argument out says the same.
        for inner, name in _OPTIONAL.items():
            if info.type == inner | None:
                return _spec(name, inner, (inner, type(None)), lambda value: "none" if value is None else str(value))
        return None

    return registry


def _spec(metavar: str, read: Callable[[str], Any], kinds: Any, show: Callable[[Any], str]) -> tyro.constructors.PrimitiveConstructorSpec:
    """How an argument of one word is read and shown; its value is an instance of ``kinds``."""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: isinstance(value, kinds),
        str_from_instance=lambda value: [show(value)],
    )


def _items(kind: type, text: str) -> tuple[Any, ...]:
    """The items of a list; an empty word is a list of no texts."""
    return () if kind is str and not text else tuple(map(kind, _COMMA.split(text)))


def _joined(values: Iterable[Any]) -> str:
    return ",".join(map(str, values))


def _floats_or_auto(text: str) -> tuple[float, ...] | str:
    return text if text == "auto" else tuple(map(float, text.split(",")))


def parse_rules(text: str, bare: bool = False) -> tuple[Rule | str, ...]:
    """``REGEX=scale`` or ``REGEX=exclude``, comma separated; a comma inside a regular expression is no separator. With ``bare``, a
    ``REGEX`` alone is an item too, and stays a text.

    >>> parse_rules("norm=exclude,layers/.{1,2}/mlp=rms")
    (Rule(pattern='norm', scale=None), Rule(pattern='layers/.{1,2}/mlp', scale='rms'))
    >>> parse_rules("norm=exclude,layers/.{1,2}/mlp", bare=True)
    (Rule(pattern='norm', scale=None), 'layers/.{1,2}/mlp')
    """
    found, end = [], 0
    while end < len(text):
        if (match := (_RULE_OR_REGEX if bare else _RULE).match(text, end)) is None:
            raise ValueError(f"{text[end:][:80]!r}: REGEX={_SCALE} is required, comma separated")
        pattern, scale = match["pattern"], match["scale"]
        found.append(pattern if scale is None else Rule(pattern, None if scale == "exclude" else cast(Any, scale)))
        end = match.end()
    return tuple(found)


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
    names: set[str] = set()
    kinds = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        default = field.default_factory() if callable(field.default_factory) else None
        subcommands = [each for each in typing.get_args(kinds[field.name]) if isinstance(each, type) and dataclasses.is_dataclass(each)]
        if dataclasses.is_dataclass(default):
            names |= flag_names(type(default))
        elif subcommands:
            names = names.union(*map(flag_names, subcommands))
        else:
            names.add(field.name)
    return names


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
