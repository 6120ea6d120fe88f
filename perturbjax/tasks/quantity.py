"""Numbers in replies: finding them, and one spelling for each value.

Everything works on strings, so a reply with a million digits is neither an error nor slow.
"""

import re

# A minus is a sign only where no operand stands before it ("5-3" holds 5 and 3, "= -3" holds -3); commas only between groups of three.
# Signs are possessive (?+): without what follows them they are no part of a number, and trying again takes as long again.
_NUMBER = re.compile(
    r"(?:(?<![0-9A-Za-z_)\].])[-\u2212])?+"
    r"[$\u20ac\u00a3]?+"
    r"(?:(?<![0-9A-Za-z_])(?<![0-9]\.)(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?"
    r"|(?<![0-9A-Za-z_.])\.[0-9]+)"
)
_DECORATION = " \t\r\n*`\"'_"


def find_numbers(text: str) -> list[str]:
    """Every number of a text, as written, in order.

    >>> find_numbers("She pays $1,250.50 for 3 of 10-12 boxes, a change of -4.")
    ['$1,250.50', '3', '10', '12', '-4']
    """
    return _NUMBER.findall(text)


def normalize_number(text: str) -> str | None:
    """The canonical spelling of a text that is one number and nothing else, or None.

    Currency signs, thousands commas, a percent sign, a final full stop, Markdown emphasis and needless zeros go.

    >>> [normalize_number(text) for text in ("1,000", "1000.0", "$1000", "**1000.**", "-0.50", "ten", "3 + 4")]
    ['1000', '1000', '1000', '1000', '-0.5', None, None]
    """
    text = text.strip(_DECORATION).removesuffix(".").replace("\\$", "$").removesuffix("%").strip(_DECORATION)
    if not (match := _NUMBER.fullmatch(text)):
        return None
    written = match.group()
    whole, _, part = re.sub(r"[^0-9.]", "", written).partition(".")
    whole, part = whole.lstrip("0") or "0", part.rstrip("0")
    plain = f"{whole}.{part}" if part else whole
    return f"-{plain}" if written[0] in "-\u2212" and plain != "0" else plain


def first_line(text: str) -> str:
    """The first line with anything on it, stripped; "" if there is none."""
    return next((line.strip() for line in text.split("\n") if line.strip()), "")
