"""The engine: (candidates, examples of a task) -> answers and scores, through one compiled program a kind of task."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from perturbjax import _compat, sharding
from perturbjax.cluster.distributed import Team
from perturbjax.errors import InputError
from perturbjax.inference.choice import choice_values
from perturbjax.inference.decode import NO_TOKEN
from perturbjax.inference.generation import GenerationBatch, batch_prompts, generate_replies
from perturbjax.inference.outputs import Outputs, Prepared, judge
from perturbjax.inference.packing import Packing, ScoringExample, common_prefix, pack, unpack
from perturbjax.models.partition import partition
from perturbjax.noise import Candidate, Noise
from perturbjax.noise.values import fold_in, root_key_data
from perturbjax.pretrained import Model
from perturbjax.scoring import ChunkProgram
from perturbjax.scoring.strategy import Work, cheapest
from perturbjax.tasks.base import Example, Task, Template
from perturbjax.tree import leaf_paths

_log = logging.getLogger(__name__)

SLOT_TOKENS = 4096
"""Tokens of one forward pass of a choice task: enough rows for full-speed matmuls and for the noise of a pass to be spread over."""
EMBEDDING = "embed/embedding"
_SCORE = "score"
"""The kind of work that an engine announces."""


class Engine:
    """Scores candidates of one model on one task.

    Args:
        model: the base; its params are put on the mesh once and never written.
        task: what is asked and how it is judged.
        noise: what perturbs.
        mesh: all devices along "data" by default; the model is sharded over those along "model" (``models.partition``).
        chunk: candidates of one compiled call (rounded up to fill the mesh).
        in_flight: candidates evaluated together on each device, under vmap; halved, with a warning, when they do not fit.
        max_new_tokens: generation budget; the task's own by default.
        strategy: one of ``STRATEGIES``, or "auto" for the cost model's choice (``strategy.choose``), made for each ``prepare``.
    """

    def __init__(
        self,
        model: Model,
        task: Task,
        noise: Noise,
        mesh: Mesh | None = None,
        chunk: int = 4,
        in_flight: int = 1,
        max_new_tokens: int | None = None,
        strategy: str = "auto",
    ):
        self.model, self.task, self.noise = model, task, noise
        self.mesh = mesh or sharding.make_mesh()
        self.in_flight, self.strategy = in_flight, strategy
        self.max_new_tokens = max_new_tokens or task.max_new_tokens
        self.parallel = partition(model.config, self.mesh.shape[sharding.MODEL])
        self.params = sharding.shard_params(model.params, self.mesh, self.parallel.dims(model.config) if self.parallel else None)
        self._team = Team()
        self._requested = chunk
        self._programs: dict[tuple[str, str | None, bool], ChunkProgram] = {}
        width = self.mesh.shape[sharding.DATA] * in_flight
        self.chunk = -(-chunk // width) * width

    @property
    def traces(self) -> int:
        """How often a program was traced so far: once a kind of work and length bucket."""
        return sum(program.traces for program in self._programs.values())

    def prepare(self, examples: Sequence[Example], template: Template, slot_tokens: int = SLOT_TOKENS) -> Prepared:
        """Renders and tokenises; the longest common prefix of all prompts is split off, so that they can share it. ``slot_tokens`` bounds
        the tokens of one forward pass of a choice task.

        Raises:
            InputError: a prompt is longer than the model's context.
        """
        prompts = [self.task.prompt(example, template) for example in examples]
        encode = self.model.tokenizer.encode
        ids = [self.model.tokenizer.encode_prompt(prompt) for prompt in prompts]
        choices = [[encode(choice) for choice in prompt.choices] for prompt in prompts]
        for example, prompt, branches in zip(examples, ids, choices, strict=True):
            needed = len(prompt) + max([self.max_new_tokens, *(len(c) for c in branches)])
            if needed > self.model.config.max_positions:
                raise InputError(
                    f"example {example.id!r} needs {needed} tokens under template {template.name!r}; "
                    f"the model takes {self.model.config.max_positions}: "
                    "leave it out or choose a shorter template"
                )
        length = common_prefix(ids)
        prefix, rest = ids[0][:length], [prompt[length:] for prompt in ids]
        if self.task.kind == "choice":
            packings = pack(prefix, [ScoringExample(p, c) for p, c in zip(rest, choices, strict=True)], slot_tokens)
            tokens, passes = sum(packing.tokens for packing in packings), sum(int(packing.batch.count) for packing in packings)
            whole_head = not packings[0].single
            return Prepared(tuple(examples), template, packings, tokens, self._strategy(tokens, passes, len(packings), whole_head))
        batch, tokens = batch_prompts(prefix, rest), length + sum(len(p) for p in rest)
        passes = 1 + int(batch.count) * self.max_new_tokens
        generated = len(rest) * self.max_new_tokens
        return Prepared(tuple(examples), template, batch, tokens, self._strategy(tokens + generated, passes, 1, True))

    def _strategy(self, tokens: int, passes: int, copies: int, whole_head: bool) -> str:
        """What was asked for, or the cost model's choice. ``whole_head``: all logits are needed, not those of a few ids."""
        if self.strategy != "auto":
            return self.strategy
        sizes = {path: leaf.size for path, leaf in leaf_paths(self.params.arrays).items() if self.noise.scale_of(path)}
        looked_up = sizes.get(EMBEDDING, 0) if not (whole_head and self.model.config.tied_head) else 0
        in_dots = 1 - looked_up / max(1, sum(sizes.values()))
        work = Work(tokens, passes * in_dots, copies, self.in_flight * self.params.device_bytes)
        chosen = cheapest(work, self.noise, _compat.free_bytes(self.mesh.devices.flat[0]))
        _log.info("strategy %s for %s", chosen, work)
        return chosen

    def run(self, candidates: Candidate, prepared: Prepared) -> Outputs:
        """Answers of a batch of candidates (leading axis n, any n); ``Candidate.base(1)`` is the base through the same program."""
        return self._evaluate(candidates, prepared, plain=False)

    def sample(self, prepared: Prepared, num_samples: int, temperature: float, seed: int) -> Outputs:
        """``num_samples`` draws of the base at a temperature (self-consistency, arXiv 2203.11171); row i of the outputs is draw i.

        A choice task draws from softmax(log-probability / temperature) over the choices; all draws come from one forward pass, so its
        tokens are counted once, in row 0. A generation task samples every reply token by token.
        """
        started = time.perf_counter()
        if isinstance(prepared.layout, GenerationBatch):
            keys = jax.vmap(fold_in, (None, 0))(root_key_data(seed), jnp.arange(num_samples, dtype=jnp.uint32))
            layout = replace(prepared.layout, temperature=np.float32(temperature))
            return self._evaluate(
                Candidate.base(num_samples)._replace(key_data=keys), replace(prepared, layout=layout), plain=True, sample=True
            )
        base = self._evaluate(Candidate.base(1), prepared, plain=False)
        assert base.log_probs is not None
        scaled = base.log_probs[0] / temperature
        # argmax of log-probability plus Gumbel noise is a draw from the softmax; absent choices stay at -inf.
        gumbel = np.random.default_rng(seed).gumbel(size=(num_samples, *scaled.shape))
        drawn = np.argmax(scaled + gumbel, axis=-1)
        tokens = np.zeros(num_samples, np.int64)
        tokens[:1] = base.tokens
        finite = np.full(num_samples, base.nonfinite == 0)
        texts = [[e.choices[c] for e, c in zip(prepared.examples, row, strict=True)] for row in drawn]
        return judge(self.task, texts, prepared, finite, tokens, started)

    def reference(self, prepared: Prepared, rounds: int = 3) -> float:
        """Tokens per second of plain batch inference: the unperturbed model, without noise, on the same tokens; the median of ``rounds``
        after one to compile."""
        self.run_plain(prepared)
        rates = []
        for _ in range(rounds):
            outputs = self.run_plain(prepared)
            rates.append(outputs.tokens.sum() / outputs.seconds)
        return float(np.median(rates))

    def run_plain(self, prepared: Prepared, copies: int = 1) -> Outputs:
        """Answers of the base through the plain program, in which there is no noise to make.

        ``copies``: how many times, spread over the mesh. On one device a copy beyond the first would be free, because XLA sees that all of
        them are the same.
        """
        return self._evaluate(Candidate.base(copies), prepared, plain=True)

    def compiled(self, prepared: Prepared, plain: bool = False) -> list[Any]:
        """The programs behind ``run`` (or ``run_plain``) on ``prepared``, compiled now if they have not been."""
        parts = [prepared.layout] if isinstance(prepared.layout, GenerationBatch) else prepared.layout
        strategy = None if plain else prepared.strategy
        return [self._program(part, strategy, sample=False).lower(_arrays(part)).compile() for part in parts]

    def _evaluate(self, candidates: Candidate, prepared: Prepared, plain: bool, sample: bool = False) -> Outputs:
        started = time.perf_counter()
        layout, strategy = prepared.layout, None if plain else prepared.strategy
        count = candidates.index.shape[0]
        if not isinstance(layout, GenerationBatch):
            log_probs = unpack(layout, [self._compute(part, strategy, sample, candidates) for part in layout])
            finite = np.logical_not(np.isnan(log_probs).any(axis=(1, 2)))
            answers = [[e.choices[c] for e, c in zip(prepared.examples, row, strict=True)] for row in np.argmax(log_probs, axis=-1)]
            tokens = np.full(count, prepared.prompt_tokens, np.int64)
            return judge(self.task, answers, prepared, finite, tokens, started, log_probs)
        replies = self._compute(layout, strategy, sample, candidates)
        shape = (count, -1)
        generated = replies.tokens.reshape(*shape, replies.tokens.shape[-1])[:, : len(prepared.examples)]
        finite = replies.finite.reshape(shape).all(axis=1)
        texts = [[self.model.tokenizer.decode([int(t) for t in row if t != NO_TOKEN]) for row in rows] for rows in generated]
        tokens = prepared.prompt_tokens + (generated != NO_TOKEN).sum(axis=(1, 2))
        outputs = judge(self.task, texts, prepared, finite, tokens, started)
        return replace(outputs, row_steps=replies.row_steps.sum(axis=1, dtype=np.int64))

    def _compute(self, layout: Packing | GenerationBatch, strategy: str | None, sample: bool, candidates: Candidate) -> Any:
        """A piece of work for all devices, and so for all processes; with half as many candidates in flight where memory is short.

        Raises:
            MemoryError: it is short with one.
        """
        candidates = jax.tree.map(np.asarray, candidates)
        while True:
            order = (layout, strategy, sample, candidates, self.in_flight)
            self._team.announce(_SCORE, order)
            try:
                return self._obey(*order)
            except jax.errors.JaxRuntimeError as error:
                if not _compat.is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0]
            if self.in_flight == 1:
                raise MemoryError(f"one candidate at a time does not fit on a device ({reason}); shard the model over more of them: --mesh")
            _log.warning("out of memory with %d candidates in flight, going on with %d (%s)", self.in_flight, self.in_flight // 2, reason)
            self._set_in_flight(self.in_flight // 2)

    def follow(self, others: Mapping[str, Callable[[Any], Any]] = MappingProxyType({})) -> None:
        """On every process but the first: does its share of the work until process 0 has finished (``distributed``). ``others``: what else
        process 0 announces, kind -> how it is done."""

        def score(order: Any) -> None:
            try:
                self._obey(*order)
            except jax.errors.JaxRuntimeError as error:
                # All devices hold the same, so process 0 is as short of memory, and asks again for less at a time.
                if not _compat.is_out_of_memory(error):
                    raise

        self._team.follow({**others, _SCORE: score})

    def _obey(self, layout: Packing | GenerationBatch, strategy: str | None, sample: bool, candidates: Candidate, in_flight: int) -> Any:
        self._set_in_flight(in_flight)
        return self._program(layout, strategy, sample)(candidates, _arrays(layout))

    def _set_in_flight(self, count: int) -> None:
        if count != self.in_flight:
            self.in_flight = count
            self._programs.clear()  # they were compiled for another number, and hold memory

    def _program(self, layout: Packing | GenerationBatch, strategy: str | None, sample: bool) -> ChunkProgram:
        """The program of a kind of work; ``strategy`` None is the plain model without noise."""
        single = isinstance(layout, Packing) and layout.single
        name = "generate" if isinstance(layout, GenerationBatch) else "single" if single else "normalised"
        if (name, strategy, sample) not in self._programs:
            if isinstance(layout, GenerationBatch):
                fn = generate_replies(self.model.config, self.max_new_tokens, self.model.tokenizer.stop_ids, sample, self.parallel)
            else:
                fn = choice_values(self.model.config, single, self.parallel)
            noise = None if strategy is None else self.noise
            self._programs[name, strategy, sample] = ChunkProgram(
                fn, self.params, noise, self.mesh, self._requested, self.in_flight, strategy or "copy"
            )
        return self._programs[name, strategy, sample]


def _arrays(layout: Packing | GenerationBatch) -> dict[str, Any]:
    """What the compiled program takes as data."""
    return layout.batch.arrays() if isinstance(layout, Packing) else layout.arrays()
