"""The engine: (candidates, examples of a task) -> answers and scores, through one compiled program a kind of task."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from perturbjax import _compat, sharding
from perturbjax.cluster import broadcast, on_main
from perturbjax.inference.decode import NO_TOKEN
from perturbjax.inference.halving import HalvingPrograms
from perturbjax.inference.outputs import EncodedBatch, Outputs, Running, grade
from perturbjax.inference.packing import ScoringExample, common_prefix, pack, unpack
from perturbjax.inference.programs import Kind, batch_prompts, candidate_function
from perturbjax.inference.prompts import encode_prompts
from perturbjax.noise import Candidate, Noise
from perturbjax.noise.spec import moving
from perturbjax.noise.values import fold_in, root_key_data
from perturbjax.pretrained import Model
from perturbjax.scoring.strategy import Work, cheapest, check_strategy, has_factors
from perturbjax.tasks.base import Example, Task, Template
from perturbjax.tree import leaf_paths

_log = logging.getLogger(__name__)

SLOT_TOKENS = 4096
"""Tokens of one forward pass of a multiple-choice task: enough rows for full-speed matmuls, and to share the noise of a pass among."""
REFERENCE_SECONDS = 3.0
"""Time enough to measure plain inference in."""
EMBEDDING = "embed/embedding"


class Engine:
    """Scores candidates of one model on one task.

    In a run of several processes all of them make the same engine and call its methods together: the compiled program gives every process
    all results, process 0 grades them (a task is a user's code), and what it found is broadcast.

    Args:
        model: the base; its params are put on the mesh once and never written.
        task: what is asked and how it is graded.
        noise: what perturbs.
        mesh: all devices along "data" by default; the model is sharded over those along "model" (``models.partition``).
        chunk: candidates of one compiled call (rounded up to fill the mesh).
        in_flight: candidates evaluated together on each device, under vmap; halved, with a warning, when they do not fit.
        max_new_tokens: generation budget; the task's own by default.
        strategy: one of ``STRATEGIES``, or "auto" for the cost model's choice (``strategy.cheapest``), made for each ``prepare``.
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
        self.strategy = strategy
        self.max_new_tokens = max_new_tokens or task.max_new_tokens
        self.parallel = model.config.partition(self.mesh.shape[sharding.MODEL])
        self.params = self._sharded(model.params)
        if strategy != "auto":
            check_strategy(strategy, self.params.whole(), noise)
        function = partial(candidate_function, model.config, self.max_new_tokens, model.tokenizer.stop_ids, self.parallel)
        self._programs = HalvingPrograms(function, self.params, noise, self.mesh, chunk, in_flight)
        self.width = self.mesh.shape[sharding.DATA] * in_flight
        self.chunk = -(-chunk // self.width) * self.width
        self._graded_at = 0.0  # when candidates were graded last, on the clock of time.perf_counter

    def _sharded(self, params: Any) -> sharding.ShardedParams:
        return sharding.shard_params(params, self.mesh, self.parallel.dims(self.model.config) if self.parallel else None)

    def rebase(self, params: Any) -> None:
        """From now on the base is ``params``, a tree of the shapes of ``model.params``, put on the mesh in the model's types; no program is
        compiled anew. For searches whose center moves, and for models that were trained. The arrays are not copied where they lie on
        the mesh already: whoever donates them gives the engine others before it runs again. Shapes alone (``jax.ShapeDtypeStruct``), with
        which an engine may begin too, take no memory until there are arrays to run."""
        types = jax.tree.map(lambda leaf: leaf.dtype, self.model.params)
        self.params = self._sharded(jax.tree.map(lambda leaf, dtype: leaf if leaf.dtype == dtype else leaf.astype(dtype), params, types))
        self._programs.rebase(self.params)

    @property
    def in_flight(self) -> int:
        """Candidates evaluated together on each device; fewer than were asked for where memory was short."""
        return self._programs.in_flight

    @property
    def traces(self) -> int:
        """How often a program was traced so far: once a kind of work and length bucket."""
        return self._programs.traces

    def prepare(self, examples: Sequence[Example], template: Template, slot_tokens: int = SLOT_TOKENS) -> EncodedBatch:
        """Renders and tokenizes; the longest common prefix of all prompts is split off, so that they can share it. ``slot_tokens`` bounds
        the tokens of one forward pass of a multiple-choice task.

        Raises:
            InputError: a prompt is longer than the model's context.
        """
        ids, choices = encode_prompts(self.model, self.task, examples, template, self.max_new_tokens)
        length = common_prefix(ids)
        prefix, rest = ids[0][:length], [prompt[length:] for prompt in ids]
        worths = tuple({} for _ in examples)
        if self.task.kind == "choice":
            packings = pack(prefix, [ScoringExample(p, c) for p, c in zip(rest, choices, strict=True)], slot_tokens)
            arrays = tuple(packing.arrays for packing in packings)
            tokens, passes = sum(packing.tokens for packing in packings), sum(int(each["num_valid"]) for each in arrays)
            single = packings[0].single
            strategy = self._strategy(tokens, passes, len(packings), all_logits=not single)
            return EncodedBatch(
                tuple(examples), template, "single_token" if single else "multi_token", arrays, packings, tokens, strategy, worths
            )
        data, tokens = batch_prompts(prefix, rest), length + sum(len(p) for p in rest)
        passes = 1 + int(data["num_valid"]) * self.max_new_tokens
        strategy = self._strategy(tokens + len(rest) * self.max_new_tokens, passes, 1, all_logits=True)
        return EncodedBatch(tuple(examples), template, "generate", (data,), (), tokens, strategy, worths)

    def _strategy(self, tokens: int, passes: int, copies: int, all_logits: bool) -> str:
        """What was asked for, or the cost model's choice. ``all_logits``: all are needed, not those of a few ids."""
        if self.strategy != "auto":
            return self.strategy
        leaves = leaf_paths(self.params.arrays)
        sizes = {path: leaves[path].size for path in moving(leaves, self.noise)}
        embeddings = sum(size for path, size in sizes.items() if path.endswith(EMBEDDING))
        looked_up = embeddings if not (all_logits and self.model.config.tied_head) else 0
        in_dots = 1 - looked_up / max(1, sum(sizes.values()))
        factors = has_factors(self.params.whole(), self.noise)
        work = Work(tokens, passes * in_dots, copies, self.in_flight * self.params.device_bytes, factors)
        # One choice for all processes, whose free memory may differ.
        chosen = on_main(lambda: cheapest(work, self.noise, _compat.free_bytes(self.mesh.local_devices[0])))
        _log.info("strategy %s for %s", chosen, work)
        return chosen

    def run(self, candidates: Candidate, batch: EncodedBatch) -> Outputs:
        """Answers of batched candidates (leading axis n, any n); ``Candidate.base(1)`` is the base through the same program."""
        return self.start(candidates, batch).graded()

    def start(self, candidates: Candidate, batch: EncodedBatch) -> Running:
        """Dispatches what ``run`` would run. Whoever starts several waits for one before the next, and may grade it while that runs."""
        return self._start(candidates, batch, batch.strategy)

    def sample(self, batch: EncodedBatch, num_samples: int, temperature: float, seed: int) -> Outputs:
        """``num_samples`` draws of the base at a temperature (self-consistency, arXiv 2203.11171); row i of the outputs is draw i.

        A multiple-choice task draws from softmax(log-probability / temperature) over the choices; all draws come from one forward pass, so
        its tokens are counted once, in row 0. A generation task samples every reply token by token.
        """
        if batch.program == "generate":
            keys = jax.vmap(fold_in, (None, 0))(root_key_data(seed), jnp.arange(num_samples, dtype=jnp.uint32))
            (arrays,) = batch.arrays
            batch = replace(batch, arrays=(arrays | {"temperature": np.asarray(temperature, np.float32)},))
            return self._start(Candidate.base(num_samples)._replace(key_data=keys), batch, None, sample=True).graded()
        started = time.perf_counter()
        base = self.run(Candidate.base(1), batch)
        assert base.log_probs is not None
        scaled = base.log_probs[0] / temperature
        # argmax of log-probability plus Gumbel noise is a draw from the softmax; absent choices stay at -inf.
        gumbel = np.random.default_rng(seed).gumbel(size=(num_samples, *scaled.shape))
        tokens = np.zeros(num_samples, np.int64)
        tokens[:1] = base.tokens
        finite = np.full(num_samples, base.nonfinite == 0)
        return self._graded(_chosen(batch, scaled + gumbel), batch, finite, tokens, started)

    def reference(self, batch: EncodedBatch, rounds: int = 3) -> float:
        """Tokens per second of plain batch inference: the unperturbed model, without noise, on the same tokens; the median of ``rounds``
        after one to compile, or of as many as fill ``REFERENCE_SECONDS``."""
        self.run_plain(batch)
        outputs = list[Outputs]()
        while len(outputs) < rounds and sum(each.seconds for each in outputs) < REFERENCE_SECONDS:
            outputs.append(self.run_plain(batch))
        return float(np.median([each.tokens.sum() / each.seconds for each in outputs]))

    def run_plain(self, batch: EncodedBatch, copies: int = 1) -> Outputs:
        """Answers of the base through the plain program, which makes no noise.

        ``copies``: how many times, sharded over the mesh. On one device a copy beyond the first would be free, because XLA sees that all of
        them are the same.
        """
        return self._start(Candidate.base(copies), batch, None).graded()

    def compiled(self, batch: EncodedBatch, plain: bool = False) -> list[Any]:
        """The programs of ``run`` (or ``run_plain``) on ``batch``, compiled now if they have not been."""
        program = self._programs[Kind(batch.program, None if plain else batch.strategy)]
        return [program.lower(arrays).compile() for arrays in batch.arrays]

    def _start(self, candidates: Candidate, batch: EncodedBatch, strategy: str | None, sample: bool = False) -> Running:
        """``strategy`` None is the plain model, without noise. Of a batch of several calls the first is dispatched."""
        started, count = time.perf_counter(), candidates.index.shape[0]
        kind = Kind(batch.program, strategy, sample)
        calls = [partial(self._programs.start, kind, candidates, arrays) for arrays in batch.arrays]
        first = calls[0]()
        results = cache(lambda: [first(), *(call()() for call in calls[1:])])

        def graded() -> Outputs:
            replies = results()
            # Time that earlier candidates were graded in while these ran is theirs, so that the seconds of all add up to the time of all.
            outputs = self._outputs(replies, batch, count, max(started, self._graded_at))
            self._graded_at = time.perf_counter()
            return outputs

        return Running(wait=results, graded=graded)

    def _outputs(self, results: list[Any], batch: EncodedBatch, count: int, started: float) -> Outputs:
        if batch.program != "generate":
            log_probs = unpack(batch.packings, results)
            finite = np.logical_not(np.isnan(log_probs).any(axis=(1, 2)))
            tokens = np.full(count, batch.prompt_tokens, np.int64)
            return replace(self._graded(_chosen(batch, log_probs), batch, finite, tokens, started), log_probs=log_probs)
        (replies,) = results
        generated = replies.tokens.reshape(count, -1, replies.tokens.shape[-1])[:, : len(batch.examples)]
        finite = replies.finite.reshape(count, -1).all(axis=1)
        texts = [[self.model.tokenizer.decode([int(t) for t in row if t != NO_TOKEN]) for row in rows] for rows in generated]
        tokens = batch.prompt_tokens + (generated != NO_TOKEN).sum(axis=(1, 2))
        outputs = self._graded(texts, batch, finite, tokens, started)
        return replace(outputs, row_steps=replies.row_steps.sum(axis=1, dtype=np.int64), reply_tokens=generated)

    def _graded(self, texts: list[list[str]], batch: EncodedBatch, finite: np.ndarray, tokens: np.ndarray, started: float) -> Outputs:
        """What process 0 finds the replies to be worth. ``started``: when the work began, on the clock of ``time.perf_counter``."""
        scores = np.zeros((2, len(texts), len(batch.examples)), np.float32)

        def graded() -> tuple[Any, Any, float]:
            nonlocal scores
            answers, keys, scores = grade(self.task, batch.examples, texts, finite, batch.worths)
            return answers, keys, time.perf_counter() - started

        answers, keys, seconds = on_main(graded)
        strict, lenient = broadcast(scores)
        nonfinite = int((~finite).sum())
        return Outputs(tuple(map(tuple, answers)), tuple(map(tuple, keys)), strict, lenient, tokens, seconds, nonfinite)


def _chosen(batch: EncodedBatch, values: np.ndarray) -> list[list[str]]:
    """The choice of the highest value, for (n, E, C) values: (n, E) texts."""
    return [[e.choices[c] for e, c in zip(batch.examples, row, strict=True)] for row in np.argmax(values, axis=-1)]
