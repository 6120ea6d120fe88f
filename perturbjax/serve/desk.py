"""Between the routes and the queue: a request becomes work, and the pieces that come back become an answer."""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from perturbjax.errors import InputError, printable, shortened
from perturbjax.pretrained.tokenizer import Tokenizer
from perturbjax.serve.batching import Batcher, QueueFull
from perturbjax.serve.config import Limits
from perturbjax.serve.forms import Form, event
from perturbjax.serve.guard import error_body
from perturbjax.serve.metrics import Metrics
from perturbjax.serve.replies import ReplyText
from perturbjax.serve.schema import Asked
from perturbjax.serve.work import Answering, Piece, Work
from perturbjax.tasks.base import Prompt

RETRY_AFTER_S = 1


@dataclass(frozen=True)
class Served:
    """What a server is made of.

    Attributes:
        name: of the model, as clients ask for it.
        tokenizer: of prompts and replies.
        vocab_size: token ids are below it.
        answering: what answers.
    """

    name: str
    tokenizer: Tokenizer
    vocab_size: int
    answering: Answering


class Refusal(Exception):
    """A request that gets no reply: the status, and why."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error", code: str | None = None):
        super().__init__(message)
        self.status, self.body = status, error_body(shortened(printable(message)), kind, code)


class Desk:
    """Takes requests in and hands replies out."""

    def __init__(self, served: Served, limits: Limits, batcher: Batcher, metrics: Metrics):
        self._served, self._limits, self._batcher, self._metrics = served, limits, batcher, metrics
        self.started = int(time.time())

    async def encoded(self, prompt: Prompt) -> list[int]:
        try:
            return (await asyncio.to_thread(self._served.tokenizer.encode_prompts, [prompt]))[0]
        except InputError as error:
            raise Refusal(400, str(error)) from None

    async def answer(
        self, request: Request, asked: Asked, longest: int | None, tokens: Sequence[int], question: str, chat: bool
    ) -> Response:
        work, pieces = self._submitted(asked, longest, tokens, question)
        form = Form(self._served.name, chat, len(tokens))
        text = ReplyText(self._served.tokenizer, asked.stops)
        if asked.stream:
            usage = asked.stream_options is not None and asked.stream_options.include_usage
            return StreamingResponse(_events(work, pieces, text, form, usage), media_type="text/event-stream")
        left = asyncio.create_task(_left(request, work))
        try:
            said, ended, vote = "", None, None
            async for piece in _pieces(pieces):
                said += text.push(piece.tokens, last=piece.ended is not None)
                ended, vote = piece.ended, piece.vote or vote
                if text.stopped:
                    work.cancelled, ended = True, "stop"
                    break
        finally:
            left.cancel()
        if ended == "error":
            raise Refusal(500, "the model failed on this batch; the log of the server says why", "server_error")
        if vote is not None:
            self._metrics.votes.inc(vote["asked"])
            self._metrics.votes_saved.inc(vote["members"] - vote["asked"])
        return JSONResponse(form.whole(said, ended, text.tokens, vote))

    def _submitted(self, asked: Asked, longest: int | None, tokens: Sequence[int], question: str) -> "tuple[Work, asyncio.Queue[Piece]]":
        served, limits = self._served, self._limits
        if asked.model is not None and asked.model != served.name:
            raise Refusal(404, f"model: {asked.model!r} is not here; this server has {served.name!r}", code="model_not_found")
        if not served.answering.streams and asked.stream:
            raise Refusal(400, "stream: a vote is known when all members have answered; leave it out")
        if not served.answering.streams and asked.temperature > 0:
            raise Refusal(400, "temperature: members of a vote answer greedily; send 0, or leave it out")
        if not tokens:
            raise Refusal(400, "prompt: at least one token is required")
        if len(tokens) > limits.max_prompt_tokens:
            raise Refusal(
                400, f"prompt: {len(tokens)} tokens; at most {limits.max_prompt_tokens} are taken", code="context_length_exceeded"
            )
        if max(tokens) >= served.vocab_size:
            raise Refusal(400, f"prompt: token ids below {served.vocab_size} are required")
        if (longest or 1) > limits.max_tokens:
            raise Refusal(400, f"max_tokens: {longest}; at most {limits.max_tokens} are generated")
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue()

        def emit(piece: Piece) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        seed = secrets.randbits(31) if asked.seed is None else asked.seed % 2**31
        work = Work(tokens, longest or limits.max_tokens, emit, asked.temperature, seed, question)
        if not self._batcher.alive:
            raise Refusal(503, "the server is stopping", "server_error")
        try:
            self._batcher.submit(work)
        except QueueFull:
            raise Refusal(429, f"{limits.max_queue} requests wait already; try again", "rate_limit_error") from None
        self._metrics.prompt_tokens.inc(len(tokens))
        return work, pieces


async def _pieces(pieces: "asyncio.Queue[Piece]") -> AsyncIterator[Piece]:
    while True:
        piece = await pieces.get()
        yield piece
        if piece.ended is not None:
            return


async def _left(request: Request, work: Work) -> None:
    """Marks work that nobody waits for any more."""
    while not await request.is_disconnected():
        await asyncio.sleep(0.5)
    work.cancelled = True


async def _events(work: Work, pieces: "asyncio.Queue[Piece]", text: ReplyText, form: Form, usage: bool) -> AsyncIterator[bytes]:
    """Server-sent events of one reply; a client that leaves cancels the rest."""
    head, first = form.head(True), True
    try:
        async for piece in _pieces(pieces):
            if piece.ended == "error":
                yield event(error_body("the model failed on this batch; the log of the server says why", "server_error"))
                break
            new = text.push(piece.tokens, last=piece.ended is not None)
            ended = "stop" if text.stopped else piece.ended
            if new or ended or first:
                yield event({**head, **form.piece(new, ended, first)})
                first = False
            if ended:
                break
        if usage:
            yield event({**head, "choices": [], "usage": form.usage(text.tokens)})
        yield b"data: [DONE]\n\n"
    finally:
        work.cancelled = True
