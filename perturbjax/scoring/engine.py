"""The engine: (candidates, examples of a task) -> answers and scores, through one compiled program a kind of task."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from perturbjax import sharding
from perturbjax.errors import InputError
from perturbjax.models import Model
from perturbjax.models.generate import NO_TOKEN
from perturbjax.noise import fold_in, root_key_data
from perturbjax.perturb import Noise
from perturbjax.population import Candidate
from perturbjax.scoring.chunk import ChunkProgram
from perturbjax.scoring.forced import choice_values
from perturbjax.scoring.generative import GenerationBatch, batch_prompts, generate_replies
from perturbjax.scoring.packing import Packing, ScoringExample, common_prefix, pack, unpack
from perturbjax.tasks.base import Example, Task, Template


@dataclass(frozen=True)
class Prepared:
    """Examples tokenised under one template and laid out for the compiled program.

    ``layout`` is a tuple of packings (choice tasks) or a GenerationBatch; ``prompt_tokens`` counts prefix and prompts, as run for one
    candidate.
    """

    examples: tuple[Example, ...]
    template: Template
    layout: tuple[Packing, ...] | GenerationBatch
    prompt_tokens: int


@dataclass(frozen=True)
class Outputs:
    """Answers of n models to E examples.

    Attributes:
        answers: (n, E) extracted answers (strict), None where there is none.
        scores: (n, E) float32 strict task scores; lenient: the same with lenient extraction (equal for choice tasks).
        tokens: (n,) int64 tokens put through the model, padding not counted.
        seconds: wall time, host work included.
        nonfinite: models with NaN or infinite logits; they score 0 everywhere.
        log_probs: (n, E, C) of each choice, for choice tasks.
    """

    answers: tuple[tuple[str | None, ...], ...]
    scores: np.ndarray
    lenient: np.ndarray
    tokens: np.ndarray
    seconds: float
    nonfinite: int
    log_probs: np.ndarray | None = None


class Engine:
    """Scores candidates of one model on one task.

    Args:
        model: the base; its params are put on the mesh once and never written.
        task: what is asked and how it is judged.
        noise: what perturbs.
        mesh: all devices along "candidate" by default.
        chunk: candidates of one compiled call (rounded up to fill the mesh).
        in_flight: perturbed copies of the weights that exist at a time on each device.
        max_new_tokens: generation budget; the task's own by default.
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
    ):
        self.model, self.task, self.noise = model, task, noise
        self.mesh = mesh or sharding.make_mesh()
        self.in_flight = in_flight
        self.max_new_tokens = max_new_tokens or task.max_new_tokens
        self.params = sharding.put_replicated(model.params, self.mesh)
        self._requested = chunk
        self._programs: dict[tuple[str, bool, bool], ChunkProgram] = {}
        width = self.mesh.shape[sharding.CANDIDATE] * in_flight
        self.chunk = -(-chunk // width) * width

    @property
    def traces(self) -> int:
        """How often a program was traced so far: once a kind of work and length bucket."""
        return sum(program.traces for program in self._programs.values())

    def prepare(self, examples: Sequence[Example], template: Template) -> Prepared:
        """Renders and tokenises; the longest common prefix of all prompts is split off to be run once a candidate.

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
            packings = pack(prefix, [ScoringExample(p, c) for p, c in zip(rest, choices, strict=True)])
            return Prepared(tuple(examples), template, packings, sum(packing.tokens for packing in packings))
        return Prepared(tuple(examples), template, batch_prompts(prefix, rest), length + sum(len(p) for p in rest))

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
        return self._judge(
            [[e.choices[c] for e, c in zip(prepared.examples, row, strict=True)] for row in drawn], prepared, finite, tokens, started
        )

    def reference(self, prepared: Prepared, rounds: int = 3) -> float:
        """Tokens per second of plain batch inference: the unperturbed model, without noise, on the same tokens; the median of ``rounds``
        after one to compile."""
        self._evaluate(Candidate.base(1), prepared, plain=True)
        rates = []
        for _ in range(rounds):
            outputs = self._evaluate(Candidate.base(1), prepared, plain=True)
            rates.append(outputs.tokens.sum() / outputs.seconds)
        return float(np.median(rates))

    def temp_bytes(self, prepared: Prepared) -> int:
        """Bytes of temporaries that scoring allocates on one device: perturbed copies in flight, caches and activations, not the base
        itself."""
        parts = [prepared.layout] if isinstance(prepared.layout, GenerationBatch) else prepared.layout
        programs = [self._program(part, plain=False, sample=False).lower(_arrays(part)) for part in parts]
        return max(program.compile().memory_analysis().temp_size_in_bytes for program in programs)

    def _evaluate(self, candidates: Candidate, prepared: Prepared, plain: bool, sample: bool = False) -> Outputs:
        started = time.perf_counter()
        layout = prepared.layout
        count = candidates.index.shape[0]
        if not isinstance(layout, GenerationBatch):
            log_probs = unpack(layout, [self._program(part, plain, sample)(candidates, _arrays(part)) for part in layout])
            finite = np.logical_not(np.isnan(log_probs).any(axis=(1, 2)))
            answers = [[e.choices[c] for e, c in zip(prepared.examples, row, strict=True)] for row in np.argmax(log_probs, axis=-1)]
            tokens = np.full(count, prepared.prompt_tokens, np.int64)
            return self._judge(answers, prepared, finite, tokens, started, log_probs)
        replies = self._program(layout, plain, sample)(candidates, _arrays(layout))
        shape = (count, -1)
        generated = replies.tokens.reshape(*shape, replies.tokens.shape[-1])[:, : len(prepared.examples)]
        finite = replies.finite.reshape(shape).all(axis=1)
        texts = [[self.model.tokenizer.decode([int(t) for t in row if t != NO_TOKEN]) for row in rows] for rows in generated]
        tokens = prepared.prompt_tokens + (generated != NO_TOKEN).sum(axis=(1, 2))
        return self._judge(texts, prepared, finite, tokens, started)

    def _judge(
        self, texts: list[list[str]], prepared: Prepared, finite: np.ndarray, tokens: np.ndarray, started: float, log_probs: Any = None
    ) -> Outputs:
        """Extracts and scores. For choice tasks ``texts`` are the chosen answers themselves."""
        choice = self.task.kind == "choice"

        def judged(strict: bool) -> tuple[list[list[str | None]], np.ndarray]:
            answers: list[list[str | None]] = [
                [
                    (text if choice else self.task.extract(text, e, strict)) if ok else None
                    for text, e in zip(row, prepared.examples, strict=True)
                ]
                for row, ok in zip(texts, finite, strict=True)
            ]
            return answers, np.array(
                [[self.task.score(a, e) for a, e in zip(row, prepared.examples, strict=True)] for row in answers], np.float32
            )

        answers, scores = judged(strict=True)
        lenient = scores if choice else judged(strict=False)[1]
        seconds = time.perf_counter() - started
        return Outputs(tuple(map(tuple, answers)), scores, lenient, tokens, seconds, int((~finite).sum()), log_probs)

    def _program(self, layout: Packing | GenerationBatch, plain: bool, sample: bool) -> ChunkProgram:
        single = isinstance(layout, Packing) and layout.single
        name = "generate" if isinstance(layout, GenerationBatch) else "single" if single else "normalised"
        if (name, plain, sample) not in self._programs:
            if isinstance(layout, GenerationBatch):
                fn = generate_replies(self.model.config, self.max_new_tokens, self.model.tokenizer.stop_ids, sample)
            else:
                fn = choice_values(self.model.config, single)
            noise = None if plain else self.noise
            self._programs[name, plain, sample] = ChunkProgram(fn, self.params, noise, self.mesh, self._requested, self.in_flight)
        return self._programs[name, plain, sample]


def _arrays(layout: Packing | GenerationBatch) -> dict[str, Any]:
    """What the compiled program takes as data."""
    return layout.batch.arrays() if isinstance(layout, Packing) else layout.arrays()
