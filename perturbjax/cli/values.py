"""How a word becomes a value of the settings' types, and how a default is shown in the help."""

import re
import typing
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import tyro

from perturbjax.models.noise_groups import GROUPS
from perturbjax.noise.spec import SCALES, Rule

_OPTIONAL: dict[type, str] = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}
_SCALE = "|".join((*SCALES, "exclude"))
_RULE = re.compile(rf"(?P<pattern>.+?)=(?P<scale>{_SCALE})(?:,|$)")
_GROUPS = tuple(name for name, rules in GROUPS.items() if rules)
_GROUP = re.compile(rf"(?P<name>{'|'.join(_GROUPS)})(?:,|$)")
_LISTS: dict[Any, tuple[type, str]] = {tuple[float, ...]: (float, "FLOAT"), tuple[int, ...]: (int, "INT"), tuple[str, ...]: (str, "TEXT")}

_COMMA = re.compile(r",(?![^()]*\)|[^{}]*\}|[^\[\]]*\])")
"""Between items of a list; one between brackets belongs to its item: ``my_task.py:Sums(2, 3)``."""
_RULE_OR_REGEX = re.compile(rf"(?P<pattern>.+?)(?:=(?P<scale>{_SCALE}))?(?:{_COMMA.pattern}|$)")


def make_registry() -> tyro.constructors.ConstructorRegistry:
    """What tyro reads words by."""
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
            return _spec(f"GROUP|REGEX={_SCALE},...", parse_rules, tuple, lambda rules: _joined(rules) or "none")
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
    """``REGEX=scale`` or ``REGEX=exclude``, comma separated; a comma inside a regular expression is no separator. The name of a group of
    ``models.noise_groups`` stands for its rules. With ``bare``, a ``REGEX`` alone is an item too, and stays a text; groups have no names.

    >>> parse_rules("norm=exclude,layers/.{1,2}/mlp=rms")
    (Rule(pattern='norm', scale=None), Rule(pattern='layers/.{1,2}/mlp', scale='rms'))
    >>> parse_rules("norm=exclude,layers/.{1,2}/mlp", bare=True)
    (Rule(pattern='norm', scale=None), 'layers/.{1,2}/mlp')
    >>> _joined(parse_rules("head=rms,embedding"))
    'head=rms,^(?!(embed|head)/)=exclude'
    """
    found: list[Rule | str] = []
    end = 0
    while end < len(text):
        if not bare and (match := _GROUP.match(text, end)):
            found += GROUPS[match["name"]]
        elif match := (_RULE_OR_REGEX if bare else _RULE).match(text, end):
            pattern, scale = match["pattern"], match["scale"]
            found.append(pattern if scale is None else Rule(pattern, None if scale == "exclude" else cast(Any, scale)))
        else:
            raise ValueError(f"{text[end:][:80]!r}: REGEX={_SCALE} or one of {', '.join(_GROUPS)} is required, comma separated")
        end = match.end()
    return tuple(found)
