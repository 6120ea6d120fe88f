"""``perturbjax bench``: how fast candidates are scored, against the plain model on the same tokens in the same process."""

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from perturbjax.errors import InputError, positive_integer
from perturbjax.models.noise_groups import decoder_noise
from perturbjax.noise import DISTRIBUTIONS, Noise
from perturbjax.randopt.config import MOST_IN_CHUNK
from perturbjax.records import to_json
from perturbjax.runs.compile_cache import use_compile_cache
from perturbjax.runs.config import check_choices, check_once, check_positive
from perturbjax.runs.console import Console
from perturbjax.runs.files import write_json
from perturbjax.runs.machine import devices, resolve_dtype, versions
from perturbjax.runs.profile import check_profile

if TYPE_CHECKING:
    from perturbjax.bench.measure import Row, Settings
    from perturbjax.bench.workloads import Workload
    from perturbjax.pretrained import Model

RATIO_SETTINGS = ("chapter", "rounds", "compile_cache", "out")
"""Settings that chapters ivl and caulking read."""
NOISES: dict[str, Noise] = {name: Noise(name) for name in DISTRIBUTIONS} | {"rank1": decoder_noise(rank=1)}


@dataclass(frozen=True)
class BenchConfig:
    """Measure candidates/s, tokens/s and efficiency: the throughput of a population divided by that of the plain model on the same tokens.

    - everything: perturbjax bench --out bench
    - a minute: perturbjax bench --tokens 256 --no-generation --noise rademacher
    - what value networks cost: perturbjax bench --chapter ivl
    - what training many caulks at once saves: perturbjax bench --chapter caulking

    The plain model runs all the tokens of the population in the batch size that is fastest. Every kind of noise and every strategy takes
    turns with it, round by round, in one process; medians are shown. Compilation is timed apart. At the end: where the time of a step
    goes.

    Of chapter ivl: three ratios of programs that take turns, on weights that are made up. Combined decoding against its two models one by
    one, a training step of a value network against fine-tuning a model of its shape, a vocabulary map against the decoding step that it is
    part of. Of chapter caulking: a grid against a loop over its cells, and LoRA caulks on one base against fine-tuning it."""

    chapter: Literal["randopt", "ivl", "caulking"] = "randopt"
    """What is measured: scoring candidates, value networks, or grids of caulks. The last two read --rounds, --compile-cache and --out
    alone."""
    model: str = "smollm2-135m"
    """As for randopt."""
    tokens: tuple[int, ...] = (256, 1024, 4096)
    """Tokens per candidate of the teacher-forced rows, comma separated: real SST-2 prompts that make nearly as many."""
    generation: bool = True
    """Measure generation too: 32 prompts of 64 tokens with 32 new tokens each, and countdown puzzles whose replies end by themselves."""
    noise: tuple[str, ...] = tuple(NOISES)
    """Kinds of noise, comma separated: the distributions of randopt at full rank, and rank1."""
    rounds: int = 5
    """Timed rounds; medians are shown."""
    population: int | None = None
    """Candidates scored in every round; when left out, as many as take a second or two."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """As for randopt."""
    chunk: int = 8
    """As for randopt."""
    in_flight: int = 1
    """As for randopt."""
    seed: int = 0
    """Seed of the noise."""
    compile_cache: str = "auto"
    """As for randopt. Compile times are those of loading where a program is found there."""
    profile: Path | None = None
    """Directory that gets a jax.profiler trace of one step of each kind, to be opened with xprof."""
    out: Path | None = None
    """Directory that gets bench.json; when left out, only the table is shown."""

    def validate(self) -> None:
        """Raise ``InputError`` for settings that cannot be used."""
        check_choices(self)
        if self.chapter != "randopt":
            for field in dataclasses.fields(self):
                if field.name not in RATIO_SETTINGS and getattr(self, field.name) != field.default:
                    flag = field.name.replace("_", "-")
                    raise InputError(f"--{flag}: chapter {self.chapter} brings its own shapes and does not read it; leave it out")
        for value in self.tokens:
            positive_integer("tokens", value)
        if not self.tokens and not self.generation:
            raise InputError("--no-generation: nothing is left to measure; give --tokens")
        if not self.noise:
            raise InputError(f"--noise: at least one is required, of {', '.join(NOISES)}")
        for name in self.noise:
            if name not in NOISES:
                raise InputError(f"--noise {name}: one of {', '.join(NOISES)} is required")
        check_once("tokens", self.tokens)
        check_once("noise", self.noise)
        check_positive(self, "rounds", "chunk", "in_flight", "population")
        if self.chunk > MOST_IN_CHUNK:
            raise InputError(f"--chunk {self.chunk}: at most {MOST_IN_CHUNK} is required")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed {self.seed}: an integer from 0 to {2**32 - 1} is required")
        if self.profile is not None:
            check_profile(self.profile)
        if self.out is not None and (self.out / "bench.json").exists():
            raise InputError(f"--out {self.out}: already holds a bench.json; give another --out")
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise InputError(f"--out {self.out}: not a directory; give another --out")


def run_bench(config: BenchConfig, console: Console) -> None:
    """Measure, show, write."""
    config.validate()
    use_compile_cache(config.compile_cache, console)
    if config.chapter == "ivl":
        from perturbjax.bench import values

        _bench_ratios(config, values, console)
        console.line(f"  {'PyTorch':<19}{values.compared_with_torch()}")
    elif config.chapter == "caulking":
        from perturbjax.bench import caulks

        _bench_ratios(config, caulks, console)
    else:
        _bench_scoring(config, console)
    if config.out is not None:
        console.line(f"written to {config.out / 'bench.json'}")


def _write(config: BenchConfig, content: dict[str, Any]) -> None:
    if config.out is not None:
        config.out.mkdir(parents=True, exist_ok=True)
        write_json(config.out / "bench.json", content)


def _bench_ratios(config: BenchConfig, chapter: Any, console: Console) -> None:
    """The rows of a chapter, whose module has ``SIZES`` and ``measure``: ratios of programs that take turns."""
    settings = {name: getattr(config, name) for name in RATIO_SETTINGS if name != "out"}
    header = {"devices": devices(), "versions": versions(), "settings": settings, "shapes": to_json(chapter.SIZES)}
    rows: list[Any] = []
    for row in chapter.measure(chapter.SIZES, config.rounds):
        rows.append(row)
        console.line(row.line)
        _write(config, {"header": header, "rows": [each.document for each in rows]})


def _bench_scoring(config: BenchConfig, console: Console) -> None:
    """How fast candidates are scored."""
    from perturbjax.bench import record
    from perturbjax.bench.measure import Settings, on_one_mesh
    from perturbjax.pretrained import load_model

    dtype = resolve_dtype(config.dtype)
    model = load_model(config.model, dtype)
    console.note(f"model {model.name}: {model.source}")
    model = on_one_mesh(model)
    noises = {name: NOISES[name] for name in dict.fromkeys(config.noise)}
    settings = Settings(noises, config.seed, config.rounds, config.population, config.chunk, config.in_flight)
    settings_record = dataclasses.asdict(config) | {"profile": None, "out": None}
    header = record.header(model, dtype) | {"versions": versions(), "settings": settings_record}

    rows: list[Row] = []
    for row in measure_rows(list(workloads(config, model)), settings, console):
        # Shown and written as they come, so that a benchmark that is stopped keeps what it has finished.
        rows.append(row)
        for line in record.row_lines(row):
            console.line(line)
        _write(config, {"header": header, **record.document(rows, [])})
    steps = record.steps(rows, settings, config.profile)
    for line in record.step_lines(steps):
        console.line(line)
    _write(config, {"header": header, **record.document(rows, steps)})
    if config.profile is not None:
        console.line(f"traces in {config.profile}; open them with: xprof --logdir {config.profile}")


def workloads(config: BenchConfig, model: "Model") -> "Iterator[Workload]":
    """What the settings ask for, smallest first."""
    from perturbjax.bench import workloads as make

    for tokens in sorted(set(config.tokens)):
        yield make.teacher_forced(model, tokens)
    if config.generation:
        yield make.fixed_generation(model)
        yield make.early_stopping(model)


def measure_rows(tasks: "list[Workload]", settings: "Settings", console: Console) -> "Iterator[Row]":
    """One row after the other, under one progress display."""
    from perturbjax.bench.measure import count_steps, measure

    done, total = itertools.count(1), sum(count_steps(workload, settings) for workload in tasks)
    with console.bar("bench", total) as progress:
        for workload in tasks:
            yield measure(workload, settings, lambda what, of=workload.label: progress.update(next(done), now=f"{of}: {what}"))
