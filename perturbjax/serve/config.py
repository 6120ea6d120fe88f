"""How much a server takes on: sizes that its programs are compiled for, and limits for its clients."""

from dataclasses import dataclass

from perturbjax.errors import InputError
from perturbjax.runs.config import check_positive

PROMPT_WIDTHS = (64, 256, 1024, 4096, 16384)
"""Columns of the prompts that programs are compiled for, as far as the longest prompt needs them."""
ROWS = (1, 4, 16, 64, 256)
"""Rows of a batch, likewise."""


@dataclass(frozen=True)
class Limits:
    """What a request may ask for, and how many wait. Beyond them a client is refused; nothing is cut."""

    max_tokens: int = 256
    """Tokens of the longest reply."""
    max_prompt_tokens: int = 1024
    """Tokens of the longest prompt, chat template included."""
    max_batch: int = 8
    """Requests that one program answers together."""
    max_wait_ms: int = 10
    """Milliseconds that a request waits for others to be answered with."""
    max_queue: int = 64
    """Requests that may wait; the next is answered with 429."""
    max_body: int = 2**20
    """Bytes of the largest request."""
    request_timeout_s: int = 10
    """Seconds within which the headers of a request must have arrived, and then its body."""

    def validate(self) -> None:
        """Raise ``InputError`` unless every limit can be kept."""
        check_positive(self, *vars(self))
        for name, most in (("max_batch", ROWS[-1]), ("max_prompt_tokens", PROMPT_WIDTHS[-1]), ("max_tokens", PROMPT_WIDTHS[-1])):
            if getattr(self, name) > most:
                raise InputError(f"`{name}` {getattr(self, name)}: at most {most} is required")

    def check_context(self, positions: int) -> None:
        """Raise ``InputError`` unless a model of so many positions has room for the longest prompt and its reply."""
        if (needed := self.max_prompt_tokens + self.max_tokens) > positions:
            raise InputError(
                f"`max_prompt_tokens` {self.max_prompt_tokens} and `max_tokens` {self.max_tokens}: {needed} together, the model takes "
                f"{positions}; lower one of them"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of the prompts that are compiled for, the last the longest prompt."""
        return _up_to(self.max_prompt_tokens, PROMPT_WIDTHS)

    @property
    def rows(self) -> tuple[int, ...]:
        """Rows of a batch that are compiled for, the last the largest batch."""
        return _up_to(self.max_batch, ROWS)


def _up_to(largest: int, sizes: tuple[int, ...]) -> tuple[int, ...]:
    return (*(size for size in sizes if size < largest), largest)
