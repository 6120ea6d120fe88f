"""The routes: OpenAI's completions and chat completions, models, health and metrics."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from perturbjax.errors import printable, shortened
from perturbjax.serve.batching import Batcher
from perturbjax.serve.config import Limits
from perturbjax.serve.desk import RETRY_AFTER_S, Desk, Refusal, Served
from perturbjax.serve.guard import App, Guard, error_body
from perturbjax.serve.metrics import Metrics
from perturbjax.serve.schema import Asked, ChatRequest, CompletionRequest, fault
from perturbjax.tasks.base import Prompt

T = TypeVar("T", bound=Asked)


def make_app(served: Served, limits: Limits, token: str | None, local: bool, note: Callable[[str], None]) -> App:
    """The server as an ASGI app; the thread that runs the model lives between its startup and its shutdown.

    Args:
        served: what answers.
        limits: of requests.
        token: of authorization, or None.
        local: as for ``Guard``.
        note: told of failures, for the log.
    """
    metrics = Metrics()
    batcher = Batcher(served.answering, limits, metrics, note)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        batcher.start()
        yield
        await asyncio.to_thread(batcher.stop)

    # No pages of documentation: they load scripts from other machines.
    app = FastAPI(title="perturbjax", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    desk = Desk(served, limits, batcher, metrics)

    @app.exception_handler(Refusal)
    async def refused(_: Request, error: Refusal) -> JSONResponse:
        headers = {"Retry-After": str(RETRY_AFTER_S)} if error.status in (429, 503) else None
        return JSONResponse(error.body, error.status, headers)

    @app.exception_handler(HTTPException)
    async def of_the_framework(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(error_body(shortened(printable(str(error.detail))), "invalid_request_error"), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(error_body("the server failed; its log says why", "server_error"), 500)

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok" if batcher.alive else "stopped"}, 200 if batcher.alive else 503)

    @app.get("/metrics")
    async def figures() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": served.name, "object": "model", "created": desk.started, "owned_by": "perturbjax"}]}

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        asked = await _parsed(CompletionRequest, request)
        if isinstance(asked.prompt, str):
            tokens = await desk.encoded(Prompt((), asked.prompt))
        else:
            tokens = asked.prompt
        return await desk.answer(request, asked, asked.longest, tokens, asked.prompt if isinstance(asked.prompt, str) else "", chat=False)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        asked = await _parsed(ChatRequest, request)
        turns = tuple({"role": message.role, "content": message.text} for message in asked.messages)
        question = next((turn["content"] for turn in reversed(turns) if turn["role"] == "user"), "")
        return await desk.answer(request, asked, asked.longest, await desk.encoded(Prompt(turns)), question, chat=True)

    return Guard(app, limits, token, local, metrics)


async def _parsed(kind: type[T], request: Request) -> T:
    try:
        return kind.model_validate_json(await request.body())
    except ValidationError as error:
        raise Refusal(400, fault(error)) from None
