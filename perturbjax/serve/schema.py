"""Requests as OpenAI's API has them, checked: what would change a reply and is not supported is refused, never ignored."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from perturbjax.errors import printable, shortened

Text = Annotated[str, Field(max_length=2**20)]
Stops = Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=8)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class StreamOptions(_Strict):
    """What a stream says besides."""

    include_usage: bool = False


class Asked(_Strict):
    """What both kinds of request have. Options of which only the neutral value is taken are there for clients that always send them."""

    model: Annotated[str, Field(max_length=200)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**20)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 0.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[str, Field(min_length=1, max_length=200)] | Stops | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: Text | None = None
    n: Literal[1] = 1
    top_p: Annotated[float, Field(ge=1, le=1)] = 1.0
    presence_penalty: Annotated[float, Field(ge=0, le=0)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] = 0.0
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


class CompletionRequest(Asked):
    """POST /v1/completions: text, or token ids, to go on from."""

    prompt: Text | Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, max_length=2**20)]
    best_of: Literal[1] = 1
    echo: Literal[False] = False
    logprobs: None = None
    suffix: None = None

    @property
    def longest(self) -> int | None:
        return self.max_tokens


class TextPart(_Strict):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class ChatMessage(_Strict):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=64)]
    name: Text | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(Asked):
    """POST /v1/chat/completions: turns, rendered with the model's own chat template."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=256)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**20)] | None = None
    logprobs: Literal[False] | None = None

    @property
    def longest(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


def fault(error: ValidationError) -> str:
    """The first defects of a request on one line, without what was sent."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    said = dict.fromkeys(f"{'.'.join(map(str, each['loc'])) or 'request'}: {each['msg']}" for each in found[:3])
    return shortened(printable("; ".join(said).replace("\n", " ")))
