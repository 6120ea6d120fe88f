"""Times the plain model and a population on the same tokens, in turns.

The reference is plain batch inference at its best: all tokens of the population as data of one "candidate", in the batch size that is
fastest of several. (N equal candidates would be no reference: in a program without noise XLA computes them once.)
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from perturbjax import sharding
from perturbjax.bench.workloads import Workload
from perturbjax.inference import EncodedBatch, Engine, Outputs
from perturbjax.noise import Noise, Population
from perturbjax.scoring.strategy import STRATEGIES, has_factors

SLOT_TOKENS = (512, 1024, 2048, 4096)
"""Batch sizes tried for the reference of teacher-forced work, in tokens of one forward pass."""
BATCH_ROWS = (32, 64)
"""The same for generation, in rows decoded together; 128 were no faster (SmolLM2-135M on a CPU)."""
ROUND_SECONDS = 1.5
"""What a round of a row should take at least, in plain inference, where the population is not given."""
SIGMA = 0.001
"""Of the candidates; no speed depends on it."""
SEARCH_RUNS = 2
"""Timed runs of each batch size when the best one is looked for."""


@dataclass(frozen=True)
class Settings:
    """What all rows share: ``population`` None lets the row choose; the others as for a search."""

    noises: Mapping[str, Noise]
    seed: int
    rounds: int
    population: int | None
    chunk: int
    in_flight: int


@dataclass
class Case:
    """One way to do the work of a row: what ``run`` does, and what it took. Tokens beyond ``most`` are work and not throughput."""

    noise: str
    strategy: str
    engine: Engine
    prepared: EncodedBatch
    run: Callable[[], list[Outputs]]
    most: float = math.inf
    compile_s: float = 0.0
    temp_bytes: int = 0
    seconds: list[float] = field(default_factory=list)
    tokens: float = 0
    row_steps: tuple[int, int] | None = None

    def timed(self) -> float:
        """Runs once and returns wall seconds; keeps nothing but the counts."""
        started = time.perf_counter()
        outputs = self.run()
        seconds = time.perf_counter() - started
        self.tokens = min(self.most, sum(int(output.tokens.sum()) for output in outputs))
        steps = [output.row_steps.sum(axis=0) for output in outputs if output.row_steps is not None]
        self.row_steps = (int(sum(s[0] for s in steps)), int(sum(s[1] for s in steps))) if steps else None
        return seconds

    @property
    def rate(self) -> float:
        """Tokens per second, from the median of the rounds."""
        return self.tokens / statistics.median(self.seconds)


@dataclass
class Row:
    """A workload measured: the reference, and a case for each kind of noise and strategy.

    Attributes:
        tried: batch size -> tokens/s of the plain model, when the best was looked for.
        best: the batch size of ``reference``.
        chosen: noise -> what ``auto`` chose.
    """

    workload: Workload
    population: int
    tried: dict[int, float]
    best: int
    reference: Case
    cases: list[Case]
    chosen: dict[str, str]


def measure(workload: Workload, settings: Settings, step: Callable[[str], None]) -> Row:
    """Measures one row; ``step`` is told of each step that is done, one for each size, each case compiled and each round."""
    tried: dict[int, float] = {}
    plain = workload.engine(next(iter(settings.noises.values())), "copy", 1, 1)
    references = dict(_references(workload, plain, settings.population or 1))
    for size, case in references.items():
        _compile(case, plain=True)
        tried[size] = max(1 / case.timed() for _ in range(SEARCH_RUNS)) * case.tokens
        step(f"plain, batch size {size}")
    best = max(tried, key=lambda size: tried[size])
    width = plain.mesh.size * settings.in_flight
    size = settings.population or width * max(1, round(ROUND_SECONDS * tried[best] / workload.tokens / width))
    reference = dict(_references(workload, plain, size))[best]
    population = Population(seed=settings.seed, size=size, sigmas=(SIGMA,))
    cases = []
    for name, noise in settings.noises.items():
        for strategy in strategies(workload, noise):
            case = _case(workload, settings, population, name, strategy)
            _compile(case, plain=False)
            case.engine.run(population[:1], case.prepared)
            cases.append(case)
            step(f"{name}, {strategy}")
    for number in range(settings.rounds):
        for case in (reference, *cases) if number % 2 == 0 else (*cases[::-1], reference):
            case.seconds.append(case.timed())
            step(f"round {number + 1} of {settings.rounds}")
    chosen = {name: _case(workload, settings, population, name, "auto").prepared.strategy for name in settings.noises}
    return Row(workload, size, tried, best, reference, cases, chosen)


def strategies(workload: Workload, noise: Noise) -> tuple[str, ...]:
    """Those that noise and weights allow; of early stopping only what ``auto`` chooses, because it is about the steps."""
    if workload.kind == "early stopping":
        return ("auto",)
    return tuple(name for name in STRATEGIES if name != "low_rank" or has_factors(workload.model.params, noise))


def count_steps(workload: Workload, settings: Settings) -> int:
    """How often ``measure`` calls ``step``."""
    cases = sum(len(strategies(workload, noise)) for noise in settings.noises.values())
    sizes = SLOT_TOKENS if workload.kind == "teacher-forced" else BATCH_ROWS
    return len(sizes) + cases + settings.rounds * (1 + cases)


def _case(workload: Workload, settings: Settings, population: Population, name: str, strategy: str) -> Case:
    engine = workload.engine(settings.noises[name], strategy, min(settings.chunk, len(population)), settings.in_flight)
    prepared = engine.prepare(workload.examples, workload.task.templates[0])

    def run() -> list[Outputs]:
        starts = range(0, len(population), engine.chunk)
        return [engine.run(population[start : start + engine.chunk], prepared) for start in starts]

    return Case(name, prepared.strategy, engine, prepared, run)


def _references(workload: Workload, engine: Engine, copies: int) -> Iterator[tuple[int, Case]]:
    """The plain model on the tokens of ``copies`` candidates, in every batch size, or of as many as fill the largest batch.

    Each device of the mesh gets its share of the tokens. The examples are repeated, as data: no program can know that they are. A batch
    smaller than a candidate runs the prefix that the prompts share more often than the candidate does; those tokens do not count.
    """
    devices = engine.mesh.size
    forced = workload.kind == "teacher-forced"
    sizes, one = (SLOT_TOKENS, workload.tokens) if forced else (BATCH_ROWS, len(workload.examples))
    repeats = max(math.ceil(copies / devices), math.ceil(sizes[-1] / one))
    examples, template = workload.examples * repeats, workload.task.templates[0]
    most = devices * repeats * engine.prepare(workload.examples, template).prompt_tokens if forced else math.inf
    for size in sizes:
        prepared = engine.prepare(examples, template, size) if forced else _in_batches(engine.prepare(examples, template), size)
        yield size, Case("none", "plain", engine, prepared, lambda prepared=prepared: [engine.run_plain(prepared, devices)], most)


def _in_batches(prepared: EncodedBatch, rows: int) -> EncodedBatch:
    """The same prompts, ``rows`` of them decoded together."""
    (arrays,) = prepared.arrays
    slots = math.ceil(arrays["valid"].size / rows)

    def regroup(name: str, fill: Any) -> np.ndarray:
        flat = arrays[name].reshape(-1, *arrays[name].shape[2:])
        padded = np.full((slots * rows, *flat.shape[1:]), fill, flat.dtype)
        padded[: len(flat)] = flat
        return padded.reshape(slots, rows, *flat.shape[1:])

    regrouped = {name: regroup(name, fill) for name, fill in (("tokens", 0), ("lengths", 1), ("valid", False))}
    regrouped["row_ids"] = np.arange(slots * rows, dtype=np.int32).reshape(slots, rows)
    regrouped["num_valid"] = np.asarray(math.ceil(len(prepared.examples) / rows), np.int32)
    return dataclasses.replace(prepared, arrays=(arrays | regrouped,))


def _compile(case: Case, plain: bool) -> None:
    started = time.perf_counter()
    programs = case.engine.compiled(case.prepared, plain)
    case.compile_s = time.perf_counter() - started
    case.temp_bytes = max(program.memory_analysis().temp_size_in_bytes for program in programs)


def on_one_mesh(model: Any) -> Any:
    """The model with its weights on the devices, so that the engines of many cases share them."""
    return dataclasses.replace(model, params=jax.block_until_ready(sharding.put_replicated(model.params, sharding.make_mesh())))
