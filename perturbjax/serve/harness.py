"""A run as a model of lm-evaluation-harness (the extra ``lm-eval``), registered as ``perturbjax`` by importing this module.

The harness imports no module of others, so start it here, with its own arguments:

    python -m perturbjax.serve.harness run --model perturbjax --model_args run=RUN --tasks TASK

``model_args``, comma separated: ``run``; ``base=true``, ``rank=N``, ``merge=true``, ``cell=NAME`` as for ``perturbjax serve``; ``trust``;
``max_length`` (context and reply, 1024), ``max_gen_toks`` (256).
"""

import sys
from pathlib import Path
from typing import Any

try:
    from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]
    from lm_eval.api.registry import register_model  # pyright: ignore[reportMissingImports]
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    if __name__ != "__main__" or error.name != "lm_eval":
        raise
    sys.stderr.write("perturbjax: error: lm_eval not installed; pip install 'perturbjax[lm-eval]'\n")
    sys.exit(2)

from perturbjax.errors import InputError, printable, shortened
from perturbjax.runs.config import check_positive
from perturbjax.runs.console import Console
from perturbjax.serve.config import Limits
from perturbjax.serve.likelihood import Likelihoods
from perturbjax.serve.replies import ReplyText
from perturbjax.serve.runs import Choice, open_run
from perturbjax.serve.server import serving
from perturbjax.serve.work import Piece, Work

_GENERATION = {"until", "max_gen_toks", "do_sample", "temperature"}
"""Settings of generation that are read; others are refused if they would change a reply."""


@register_model("perturbjax")
class PerturbjaxLM(TemplateLM):
    """What ``perturbjax serve`` would answer, asked in batches without a server.

    The log-likelihood of an ensemble is that of the mixture of its members; its replies are voted on.
    """

    def __init__(
        self,
        run: str,
        base: bool = False,
        rank: int | None = None,
        merge: bool = False,
        cell: str | None = None,
        trust: str | None = None,
        max_length: int = 1024,
        max_gen_toks: int = 256,
        batch_size: int | str = 8,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        """``batch_size`` and the others after it come from the harness; ``auto`` is 8, and JAX's own settings choose the device."""
        super().__init__()
        rows = int(batch_size) if str(batch_size).isdecimal() else 8
        limits = Limits(max_tokens=max_gen_toks, max_prompt_tokens=max_length - max_gen_toks, max_batch=rows)
        check_positive(limits, "max_tokens", "max_prompt_tokens", "max_batch")
        limits.validate()
        console = Console()
        opened = open_run(Path(run), Choice(base, rank, merge, cell), console.note, () if trust is None else (trust,))
        self.tokenizer = opened.model.tokenizer
        self._limits, self._name = limits, opened.model.name
        self._served = serving(opened, limits, console.note)
        self._likelihoods = Likelihoods(opened, rows, max_length)
        self._max_length = max_length

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.turn_end

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Part of the key of the harness' cache of requests."""
        return self._name.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text; with the BOS that the model's tokenizer puts first, unless it stands there or is not wanted."""
        ids, bos = self.tokenizer.encode(string), self.tokenizer.bos_id
        return ids if bos is None or add_special_tokens is False or ids[:1] == [bos] else [bos, *ids]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation in the model's chat format, ready for a reply."""
        if not add_generation_prompt:
            raise InputError("`add_generation_prompt` false: replies that begin with given words are not supported")
        return self.tokenizer.render_chat(chat_history)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, **_: Any) -> list[tuple[float, bool]]:
        return self._likelihoods([(context, continuation) for _, context, continuation in requests])

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        """Of each text, in windows of ``max_length`` tokens of which each is predicted once, after as much as fits."""
        pairs, owners = [], []
        for number, request in enumerate(requests):
            (text,) = request.args
            windows = get_rolling_token_windows(self.tok_encode(text, False), self.prefix_token_id, self._max_length - 1, 1)
            pairs += [make_disjoint_window(window) for window in windows]
            owners += [number] * (len(pairs) - len(owners))
        totals = [0.0] * len(requests)
        for owner, (log_prob, _) in zip(owners, self._likelihoods(pairs), strict=True):
            totals[owner] += log_prob
        return totals

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        """Replies, each up to the first of its ``until`` texts. A prompt too long is cut on the left."""
        works, texts = [], [""] * len(requests)
        for number, request in enumerate(requests):
            context, settings = request.args
            works.append(self._work(context, dict(settings), texts, number))
        works.sort(key=lambda work: -len(work.tokens))
        for first in range(0, len(works), self._limits.max_batch):
            self._served.answering.answer(works[first : first + self._limits.max_batch])
        return texts

    def _work(self, context: str, settings: dict[str, Any], texts: list[str], number: int) -> Work:
        sampled = settings.get("do_sample", bool(settings.get("temperature")))
        temperature = float(settings.get("temperature", 1.0)) if sampled else 0.0
        if unknown := sorted(settings.keys() - _GENERATION) if sampled else []:
            raise InputError(f"`{unknown[0]}` {settings[unknown[0]]}: sampling with it is not supported; leave it out")
        if temperature and not self._served.answering.streams:
            raise InputError(f"`temperature` {temperature}: members of a vote answer greedily; leave it out")
        until = settings.get("until") or []
        text = ReplyText(self.tokenizer, [until] if isinstance(until, str) else until)

        def emit(piece: Piece) -> None:
            if piece.ended == "error":
                raise FloatingPointError(f"request {number}: the model gave no finite logits")
            texts[number] += text.push(piece.tokens, last=piece.ended is not None)
            work.cancelled = text.stopped

        most = min(int(settings.get("max_gen_toks", self._limits.max_tokens)), self._limits.max_tokens)
        tokens = self.tok_encode(context) or [self.prefix_token_id]
        work = Work(tokens[-self._limits.max_prompt_tokens :], most, emit, temperature, number, context)
        return work


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate  # pyright: ignore[reportMissingImports]

    try:
        cli_evaluate()
    except InputError as error:
        sys.stderr.write(f"perturbjax: error: {shortened(printable(str(error)))}\n")
        sys.exit(2)
