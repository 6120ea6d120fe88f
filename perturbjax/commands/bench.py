"""``perturbjax bench``: how fast candidates are scored, against the plain model on the same tokens in the same process."""

import re
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from perturbjax.commands.console import Console
from perturbjax.commands.setup import load_task_with_budget, resolve_dtype, versions
from perturbjax.errors import InputError
from perturbjax.perturb import Noise
from perturbjax.population import Population
from perturbjax.search.config import check_sigmas, one_of, positive_integer
from perturbjax.search.files import write_json

if TYPE_CHECKING:
    from perturbjax.models import Model
    from perturbjax.scoring import Engine
    from perturbjax.tasks.base import Task

STRATEGY = "copy"
"""One perturbed copy per candidate in flight, made inside the compiled program."""


@dataclass(frozen=True)
class BenchConfig:
    """Measure candidates/s, tokens/s and efficiency: the throughput of a population divided by that of the plain model on the same tokens.

    perturbjax bench --model smollm2-135m --task sst2 --population 16 --out bench

    Every kind of noise and the plain model take turns, round by round, in one process; medians are shown. Compilation is timed apart."""

    model: str = "smollm2-135m"
    """As for search."""
    task: str = "sst2"
    """As for search; choice tasks measure teacher-forced scoring, the others generation."""
    population: int = 8
    """Candidates scored in every round."""
    examples: int = 64
    """Examples each candidate is scored on."""
    rounds: int = 3
    """Timed rounds, after one that compiles."""
    sigmas: tuple[float, ...] = (0.001,)
    """Noise scales."""
    max_new_tokens: int | None = None
    """Generation budget in tokens; the task's own when left out."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """As for search."""
    chunk: int = 8
    """As for search."""
    in_flight: int = 1
    """As for search."""
    seed: int = 0
    """Seed of the noise."""
    out: Path | None = None
    """Directory that gets bench.json; when left out, only the table is shown."""

    def validate(self) -> None:
        """Raise ``InputError`` for settings that cannot be used."""
        for flag, value in (
            ("--population", self.population),
            ("--examples", self.examples),
            ("--rounds", self.rounds),
            ("--chunk", self.chunk),
            ("--in-flight", self.in_flight),
        ):
            positive_integer(flag, value)
        if self.max_new_tokens is not None:
            positive_integer("--max-new-tokens", self.max_new_tokens)
        one_of("--dtype", self.dtype, ("auto", "float32", "bfloat16"))
        check_sigmas(self.sigmas)
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed {self.seed}: an integer from 0 to {2**32 - 1} is required")
        if self.out is not None and (self.out / "bench.json").exists():
            raise InputError(f"--out {self.out}: already holds a bench.json; give another --out")
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise InputError(f"--out {self.out}: not a directory; give another --out")


NOISES: dict[str, Noise] = {
    "gaussian": Noise("gaussian"),
    "rademacher": Noise("rademacher"),
    "gaussian rank 1": Noise("gaussian", rank=1),
}


@dataclass
class _Timing:
    compile_s: float = 0.0
    temp_bytes: int = 0
    tokens: int = 0
    seconds: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)


def run_bench(config: BenchConfig, console: Console) -> None:
    """Measure, show, write."""
    config.validate()
    from perturbjax.models import load_model

    task = load_task_with_budget(config.task, config.max_new_tokens)
    if config.examples > len(task.examples()):
        raise InputError(f"--examples {config.examples}: task {task.name} has {len(task.examples())}; ask for fewer")
    dtype = resolve_dtype(config.dtype)
    model = load_model(config.model, dtype)
    console.note(f"model {model.name}: {model.source}")
    timings = measure(config, model, task, console)
    rows = [_row(config, task, name, timing) for name, timing in timings.items()]
    header = _header(config, model, task, dtype)
    devices = ", ".join(header["device_kinds"])
    console.line(f"{model.name}, {task.name} ({task.kind}), {config.examples} examples, {config.population} candidates, {devices}")
    console.line(
        f"{'noise':<16} {'strategy':<9} {'cand./s':>8} {'tokens/s':>9} {'plain':>9} {'efficiency':>10} {'compile s':>9} {'temp MiB':>9}"
    )
    for row in rows:
        console.line(
            f"{row['noise']:<16} {row['strategy']:<9} {row['candidates_per_s']:>8.3g} {row['tokens_per_s']:>9.0f} "
            f"{row['reference_tokens_per_s']:>9.0f} {row['efficiency']:>10.2f} {row['compile_s']:>9.1f} {row['temp_bytes'] / 2**20:>9.0f}"
        )
    if config.out is not None:
        config.out.mkdir(parents=True, exist_ok=True)
        write_json(config.out / "bench.json", {"header": header, "rows": rows})
        console.line(f"written to {config.out / 'bench.json'}")


def measure(config: BenchConfig, model: "Model", task: "Task", console: Console) -> dict[str, _Timing]:
    """One compiling round, then timed rounds in which all kinds of noise and the plain model take turns."""
    from perturbjax.scoring import Engine

    population = Population(seed=config.seed, size=config.population, sigmas=config.sigmas)
    examples = task.examples()[: config.examples]
    engines = {name: Engine(model, task, noise, chunk=config.chunk, in_flight=config.in_flight) for name, noise in NOISES.items()}
    prepared = {name: engine.prepare(examples, task.templates[0]) for name, engine in engines.items()}
    timings = {name: _Timing() for name in engines}
    with console.progress("bench", (config.rounds + 1) * len(engines), unit="step") as progress:
        for number in range((config.rounds + 1) * len(engines)):
            round_, name = number // len(engines), list(engines)[number % len(engines)]
            engine, timing = engines[name], timings[name]
            seconds, timing.tokens = _score(engine, population, prepared[name])
            reference = engine.reference(prepared[name], 1)
            if round_ == 0:
                timing.compile_s = seconds
            else:
                timing.seconds.append(seconds)
                timing.reference.append(reference)
            progress.update(number + 1)
    for timing in timings.values():
        # The first round compiled and ran; what it took beyond a usual round is the compilation.
        timing.compile_s = max(0.0, timing.compile_s - statistics.median(timing.seconds))
    for name, timing in timings.items():
        timing.temp_bytes = engines[name].temp_bytes(prepared[name])
    return timings


def _score(engine: "Engine", population: Population, prepared: Any) -> tuple[float, int]:
    """Wall seconds and tokens of scoring the whole population."""
    tokens, started = 0, time.perf_counter()
    for start in range(0, len(population), engine.chunk):
        indices = np.arange(start, min(start + engine.chunk, len(population)))
        tokens += int(engine.run(population.candidates(indices), prepared).tokens.sum())
    return time.perf_counter() - started, tokens


def _row(config: BenchConfig, task: "Task", name: str, timing: _Timing) -> dict[str, Any]:
    seconds, reference = statistics.median(timing.seconds), statistics.median(timing.reference)
    tokens_per_s = timing.tokens / seconds
    return {
        "kind": "teacher-forced" if task.kind == "choice" else "generation",
        "strategy": STRATEGY,
        "noise": name,
        "tokens_per_candidate": timing.tokens / config.population,
        "candidates_per_s": config.population / seconds,
        "tokens_per_s": tokens_per_s,
        "reference_tokens_per_s": reference,
        "efficiency": tokens_per_s / reference,
        "compile_s": timing.compile_s,
        "temp_bytes": timing.temp_bytes,
        "rounds": len(timing.seconds),
    }


def _header(config: BenchConfig, model: "Model", task: "Task", dtype: str) -> dict[str, Any]:
    import jax

    shape = model.config
    return {
        "device_kinds": sorted({device.device_kind for device in jax.devices()}),
        "devices": jax.device_count(),
        "backend": jax.default_backend(),
        "versions": versions(),
        "model": {"name": model.name, "source": model.source, "dtype": dtype},
        "shapes": {
            "layers": shape.num_layers,
            "hidden": shape.hidden_size,
            "intermediate": shape.intermediate_size,
            "vocabulary": shape.vocab_size,
            "population": config.population,
            "examples": config.examples,
            "chunk": config.chunk,
            "in_flight": config.in_flight,
        },
        "task": re.sub(r"\s+", " ", f"{task.name}: {task.source}"),
    }
