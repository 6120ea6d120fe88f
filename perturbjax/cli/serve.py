"""``perturbjax serve``: what a run made, as an OpenAI-compatible server."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from perturbjax.errors import InputError
from perturbjax.runs.compile_cache import use_compile_cache
from perturbjax.runs.console import Console
from perturbjax.serve.config import Limits


@dataclass(frozen=True)
class ServeConfig:
    """Serve what a run made over HTTP, as OpenAI's API: /v1/chat/completions, /v1/completions, /v1/models; /health and /metrics besides.

    - the vote of an ensemble (randopt): perturbjax serve RUN
    - its best member, with streaming: perturbjax serve RUN --rank 1
    - a base with its value network (ivl), or a model that was pretrained further (vpretrain): perturbjax serve RUN
    - for other machines: perturbjax serve RUN --host 0.0.0.0 --token-file token.txt

    Replies are greedy unless a request has a temperature. Streaming is there for one model, not for a vote. SIGTERM ends the server when
    what runs is finished."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run directory of a finished run."""
    base: bool = False
    """The model that the run began from."""
    rank: int | None = None
    """Of an ensemble: the member of this rank alone, 1 being the best."""
    merge: bool = False
    """Of an ensemble: the average of its members, as export writes it."""
    cell: str | None = None
    """Of a grid of caulks: the name of the cell whose caulk answers."""
    early_exit: float | None = None
    """Of an ensemble: as for perturbjax predict."""
    host: str = "127.0.0.1"
    """Address to listen at; one that other machines reach needs a token."""
    port: int = 8000
    """Port to listen at; 0 is any that is free."""
    token_file: Path | None = None
    """File with the token that clients must send (Authorization: Bearer TOKEN); else that of the environment variable PERTURBJAX_TOKEN."""
    limits: Limits = field(default_factory=Limits)
    trust: tuple[str, ...] = ()
    """As for perturbjax evaluate."""
    compile_cache: str = "auto"
    """As for randopt."""


def run_serve(config: ServeConfig, console: Console) -> None:
    """Open the run, compile, and serve until told to stop."""
    config.limits.validate()
    if not 0 <= config.port < 2**16:
        raise InputError(f"`port` {config.port}: a number from 0 to 65535 is required")
    from perturbjax.runs.machine import require

    require("fastapi", "uvicorn", "prometheus_client")
    from perturbjax.serve.app import make_app
    from perturbjax.serve.runs import Choice, open_run
    from perturbjax.serve.server import bind, check_exposure, is_loopback, listen, read_token, serving

    token = read_token(config.token_file)
    check_exposure(config.host, token)
    choice = Choice(config.base, config.rank, config.merge, config.cell, config.early_exit)
    host = f"[{config.host}]" if ":" in config.host else config.host
    with bind(config.host, config.port) as bound:  # before minutes are spent on what could not be heard
        use_compile_cache(config.compile_cache, console)
        served = serving(open_run(config.run, choice, console.note, config.trust), config.limits, console.note)
        served.answering.warm_up(console.note)
        app = make_app(served, config.limits, token, is_loopback(config.host) and token is None, console.note)
        listen(app, bound, config.limits, lambda: console.line(f"{served.name} at http://{host}:{bound.getsockname()[1]}/v1"))
    console.line("stopped")
