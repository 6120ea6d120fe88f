"""Tokens of one reply as text that is sent piece by piece."""

from collections.abc import Sequence

from perturbjax.pretrained.tokenizer import Tokenizer

_PARTIAL = "\ufffd"


class ReplyText:
    """The text of one reply, as it comes: characters whose bytes are not all there yet, and what may be the beginning of a stop text, are
    held back.

    Args:
        tokenizer: of the model.
        stops: texts that end a reply; they are not part of it.

    Attributes:
        stopped: a stop text has come; nothing follows.
        tokens: how many came.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()):
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._ids: list[int] = []
        self._sent = ""
        self.stopped = False

    @property
    def tokens(self) -> int:
        return len(self._ids)

    def push(self, ids: Sequence[int], last: bool = False) -> str:
        """What the next tokens add; with ``last`` all that was held back."""
        if self.stopped:
            return ""
        self._ids += ids
        text = self._tokenizer.decode(self._ids)
        ends = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if ends:
            self.stopped, text = True, text[: min(ends)]
        elif not last:
            text = text.rstrip(_PARTIAL)
            text = text[: len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)]
        if len(text) <= len(self._sent):
            return ""
        new, self._sent = text[len(self._sent) :], text
        return new


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of ``text`` that ``stop`` begins with."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
