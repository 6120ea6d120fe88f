"""Replies as OpenAI's API has them: whole, or as server-sent events."""

import json
import secrets
import time
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Form:
    """The JSON of replies: of chats, or of texts."""

    model: str
    chat: bool
    prompt_tokens: int

    def head(self, chunk: bool) -> dict[str, Any]:
        """What a whole reply, or each chunk of a stream, begins with."""
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": self.model,
        }

    def usage(self, tokens: int) -> dict[str, int]:
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": tokens, "total_tokens": self.prompt_tokens + tokens}

    def whole(self, text: str, ended: str | None, tokens: int, vote: dict[str, Any] | None) -> dict[str, Any]:
        body = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choice = {"index": 0, **body, "finish_reason": ended, "logprobs": None}
        return {**self.head(False), "choices": [choice], "usage": self.usage(tokens), **({} if vote is None else {"vote": vote})}

    def piece(self, text: str, ended: str | None, first: bool) -> dict[str, Any]:
        delta = ({"role": "assistant"} if first else {}) | ({"content": text} if text or first else {})
        body = {"delta": delta} if self.chat else {"text": text}
        return {"choices": [{"index": 0, **body, "finish_reason": ended, "logprobs": None}]}


def event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"
