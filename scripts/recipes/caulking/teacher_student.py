"""Caulking on a toy whose answer is known: a teacher of two tanh layers, students pretrained on m of its outputs, a target that is near.

    .venv/bin/python scripts/recipes/caulking/teacher_student.py --seeds 5

The target has the teacher's first layer, its second moved by a matrix of rank one, and a new output. Students pretrained on m source rows
learn it from n target rows by a caulk (LoRA, a bottleneck adapter, the second layer alone) and a new head, or from scratch. Errors are
relative: mean square error over the variance. Prints the surface, n_req, the laws, and each requirement as met or not met.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.caulking import Fitting, Measured, Method, run_grid
from perturbjax.caulking.complexity import Required, Surface, source_slope, surfaces
from perturbjax.caulking.laws import compare_laws
from perturbjax.caulking.pretraining import pretrain
from perturbjax.caulking.surface_table import required_lines, surface_lines
from perturbjax.models.adapter_layers import bottleneck
from perturbjax.models.adapters import Bottleneck, LoRA, Partial, head
from perturbjax.report.accounting import student_half
from perturbjax.runs.compile_cache import use_compile_cache
from perturbjax.runs.console import SILENT, Console, Progress


@dataclass(frozen=True)
class Toy:
    """Sizes and settings.

    Attributes:
        inputs, hidden, outputs: of the teacher; students have ``width`` hidden units a layer.
        noise: standard deviation of noise in the source's training labels; all labels have variance 1.
        change: Frobenius norm of the rank-one move of the second layer.
        sources: m; samples: n.
        test: rows that measure errors.
        gain: of the teacher's layers; the higher, the further from linear.
        steps, batch: of a cell of the target.
        lengths: steps of pretraining, of which the best on other source rows are taken for each m and seed, as early stopping would.
        rates: learning rate of each method, and of pretraining.
    """

    inputs: int = 16
    hidden: int = 32
    outputs: int = 24
    width: int = 64
    gain: float = 1.8
    change: float = 2.0
    sources: tuple[int, ...] = (256, 1024, 4096, 16384)
    samples: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024)
    test: int = 2048
    pretraining_batch: int = 64
    lengths: tuple[int, ...] = (10, 30, 100, 300, 1000, 3000)
    noise: float = 0.3
    steps: int = 1000
    batch: int = 32
    pretraining_rate: float = 1e-2
    scratch_rate: float = 1e-2
    rate: float = 1e-2
    rank: int = 2
    bottleneck: int = 4


def forward(params: Any, x: jax.Array) -> jax.Array:
    """Two tanh layers and a linear output; LoRA's factors beside a kernel and a bottleneck after a layer where there are any."""
    h = jnp.tanh(bottleneck(params["first"], _linear(params["first"], x)))
    h = jnp.tanh(bottleneck(params["second"], _linear(params["second"], h)))
    return _linear(params["head"], h)


def _linear(layer: Any, x: jax.Array) -> jax.Array:
    y = x @ layer["kernel"] + layer["bias"][None]
    return y + (x @ layer["lora_a"]) @ layer["lora_b"] if "lora_a" in layer else y


def loss(params: Any, batch: Any) -> jax.Array:
    return jnp.square(forward(params, batch[0]) - batch[1]).mean()


def relative_error(params: Any, test: Any) -> jax.Array:
    """Mean square error over the variance of the outputs."""
    x, y = test
    return jnp.square(forward(params, x) - y).mean() / jnp.square(y - y.mean(axis=0, keepdims=True)).mean()


def students(toy: Toy, outputs: int) -> Callable[[jax.Array], Any]:
    """key -> random parameters, the head at zero."""

    def init(key: jax.Array) -> Any:
        first, second = jax.random.split(key)

        def layer(key: jax.Array, rows: int, columns: int) -> dict[str, jax.Array]:
            return {"kernel": jax.random.normal(key, (rows, columns)) * rows**-0.5, "bias": jnp.zeros(columns)}

        new = {"kernel": jnp.zeros((toy.width, outputs)), "bias": jnp.zeros(outputs)}
        return {"first": layer(first, toy.inputs, toy.width), "second": layer(second, toy.width, toy.width), "head": new}

    return init


@dataclass(frozen=True)
class Problem:
    """Source and target rows of each seed, leading S: (x, y) to train on, and (x, y) to measure with; the source's are twice as many, half
    of them to choose the steps of pretraining."""

    source: tuple[np.ndarray, np.ndarray]
    source_test: tuple[np.ndarray, np.ndarray]
    target: tuple[np.ndarray, np.ndarray]
    target_test: tuple[np.ndarray, np.ndarray]

    @staticmethod
    def draw(toy: Toy, seeds: Sequence[int]) -> "Problem":
        parts = zip(*(_draw(toy, seed) for seed in seeds), strict=True)
        return Problem(*((np.stack([x for x, _ in part]), np.stack([y for _, y in part])) for part in parts))

    def shuffled(self) -> "Problem":
        """The same with the source's labels in another order: pretraining then has nothing to learn."""
        x, y = self.source
        return replace(self, source=(x, np.stack([np.random.default_rng(number).permutation(each) for number, each in enumerate(y)])))


def _draw(toy: Toy, seed: int) -> list[Any]:
    rng, h = np.random.default_rng([seed, 77]), toy.hidden
    first, second = rng.normal(size=(toy.inputs, h)) * toy.gain * toy.inputs**-0.5, rng.normal(size=(h, h)) * toy.gain * h**-0.5
    u, v = (one / np.linalg.norm(one) for one in rng.normal(size=(2, h)))
    moved = second + toy.change * np.outer(u, v)
    out, new = rng.normal(size=(h, toy.outputs)) * h**-0.5, rng.normal(size=(h, 1)) * h**-0.5

    def rows(count: int, second: np.ndarray, out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = rng.normal(size=(count, toy.inputs))
        y = np.tanh(np.tanh(x @ first) @ second) @ out
        return x.astype(np.float32), (y / y.std()).astype(np.float32)

    x, y = rows(max(toy.sources), second, out)
    noisy = x, y + toy.noise * rng.normal(size=y.shape).astype(np.float32)
    source_test, target = rows(2 * toy.test, second, out), rows(max(toy.samples) + toy.test, moved, new)
    shown, asked = (tuple(each[part] for each in target) for part in (slice(max(toy.samples)), slice(max(toy.samples), None)))
    return [noisy, source_test, shown, asked]


def pretrained(toy: Toy, problem: Problem, seeds: Sequence[int], progress: Progress) -> tuple[dict[float, Any], dict[float, list[float]]]:
    """m -> students pretrained on the first m source rows, leading S, with a new head at zero; m -> source errors, one a seed."""
    x, y = problem.source_test
    validation, test = ((x[:, part], y[:, part]) for part in (slice(None, toy.test), slice(toy.test, None)))
    bases = pretrain(
        loss, relative_error, students(toy, toy.outputs), problem.source, validation, toy.sources, seeds, toy.lengths,
        toy.pretraining_batch, toy.pretraining_rate, per_seed=True, progress=progress,
    )  # fmt: skip
    errors = {m: list(map(float, jax.vmap(relative_error)(base, test))) for m, base in bases.items()}
    new = {"kernel": np.zeros((len(seeds), toy.width, 1), np.float32), "bias": np.zeros((len(seeds), 1), np.float32)}
    return {m: base | {"head": new} for m, base in bases.items()}, errors


def methods(toy: Toy) -> dict[str, Method]:
    return {
        "lora": Method(LoRA(toy.rank, float(toy.rank), ("second/kernel",)), head(), toy.rate, attach=True),
        "adapter": Method(Bottleneck(toy.bottleneck, ("(first|second)/kernel",)), head(), toy.rate),
        "partial": Method(Partial(("second",)), head(), toy.rate),
        "scratch": Method(None, learning_rate=toy.scratch_rate),
    }


@dataclass(frozen=True)
class Outcome:
    """What one experiment found: cells of the target, and the errors of the bases on the source."""

    cells: tuple[Measured, ...]
    source: dict[float, list[float]]


def experiment(toy: Toy, seeds: Sequence[int], names: Sequence[str], shuffle: bool = False, progress: Progress = SILENT) -> Outcome:
    """Pretraining on the source (its labels shuffled: the control), then every cell of the target."""
    problem = Problem.draw(toy, seeds)
    bases, errors = pretrained(toy, problem.shuffled() if shuffle else problem, seeds, progress)
    chosen = {name: method for name, method in methods(toy).items() if name in names}
    cells = run_grid(
        loss, relative_error, bases, chosen, problem.target, problem.target_test, toy.samples, seeds, Fitting(toy.steps, toy.batch),
        init=students(toy, 1), per_seed=True, progress=progress,
    )  # fmt: skip
    return Outcome(cells, errors)


def ratio(required: Mapping[Any, Required], first: float, last: float) -> float:
    """n_req of the first quality over that of the last; where the first is censored, at least this."""
    return required[first].samples / required[last].samples


Requirement = tuple[str, str, bool | None]
"""What is required, what was found, whether it is met; None: there is nothing to test it on."""


def requirements(main: Outcome, control: Outcome, level: float) -> list[Requirement]:
    table = surfaces(main.cells)
    found = {name: surface.required(level) for name, surface in table.items()}
    lines: list[Requirement] = []
    for name in ("lora", "adapter", "partial"):
        surface = table[name]
        rows = [list(surface.qualities).index(m) for m in (256.0, 1024.0, 4096.0)]
        columns = [number for number, n in enumerate(surface.samples) if n >= 64]
        falls = surface.errors[np.ix_(rows, columns)]
        share = float((np.diff(falls, axis=0) < 0).all(axis=0).mean())
        lines.append((f"{name}: error falls in m, 256 to 4096, n >= 64, in >= 90 % of (n, seed)", f"{share:.1%}", share >= 0.9))
    for name in ("lora", "partial"):
        value = ratio(found[name], 256.0, 4096.0)
        least = "at least " if found[name][256.0].censored == "above" else ""
        lines.append((f"{name}: n_req({level:g}) falls >= 4 times from m = 256 to 4096", f"{least}{value:.1f}", value >= 4))
    scratch, lora = found["scratch"][None], found["lora"][4096.0]
    value = lora.samples / scratch.samples
    lines.append(("n_req(lora, 4096) <= half of scratch", f"{value:.2f}", lora.censored != "above" and value <= 0.5))
    for name in ("lora", "adapter", "partial"):
        value, (low, high), used = source_slope(table[name], main.source, level)
        what = f"{value:.2f} [{low:.2f}, {high:.2f}], {used} of {len(main.source)} m"
        lines.append((f"{name}: slope of log n_req against log source error > 0.4, interval off 0", what, bool(value > 0.4 and low > 0)))
    lines += _of_the_control(control) + _of_the_norm(table, dict.fromkeys(table, level), main.source)
    shuffled = surfaces(control.cells)
    reached = {name: level for name, surface in shuffled.items() if (level := _reached_by_all(surface)) < 1}
    lines += [line for line in _of_the_norm(shuffled, reached, control.source, ", shuffled") if "flat" in line[0]]
    return lines


def _reached_by_all(surface: Surface) -> float:
    """The lowest error, in steps of .05, that every m reaches on average."""
    return next((float(level) for level in np.arange(0.2, 1.0, 0.05) if (surface.mean.min(axis=1) <= level).all()), 1.0)


def _of_the_control(control: Outcome) -> list[Requirement]:
    """Shuffled labels: n_req from m = 256 over that from 4096, at the lowest level that both reach."""
    lines = []
    for name, surface in surfaces(control.cells).items():
        what = f"{name}: shuffled source labels, ratio in [.7, 1.4]"
        for level in np.arange(0.2, 1.0, 0.05):
            found = surface.required(float(level))
            if all(found[m].censored == "no" for m in (256.0, 4096.0)):
                value = ratio(found, 256.0, 4096.0)
                lines.append((what, f"{value:.2f} at error {level:.2f}", 0.7 <= value <= 1.4))
                break
        else:
            lines.append((what, "no level is reached by both", False))
    return lines


def _of_the_norm(
    table: Mapping[str, Surface], levels: Mapping[str, float], source: Mapping[float, Sequence[float]], of: str = ""
) -> list[Requirement]:
    """The size of a caulk at each method's level of error; of one that grows, by how much, paired by seed with Student's interval."""
    lines = []
    for name in (name for name in ("lora", "adapter", "partial") if name in levels):
        found: dict[Any, Required] = {m: each for m, each in table[name].required(levels[name]).items() if each.censored != "above"}
        norms = {m: each.norm for m, each in found.items()}
        shown = ", ".join(f"{m:.0f}: {norm:.2f}" for m, norm in norms.items())
        growing = [(a, b) for a, b in zip(list(norms)[:-1], list(norms)[1:], strict=True) if norms[b] > norms[a]]
        for a, b in growing:
            by_seed = _norm_by_seed(table[name], b, found[b].samples) - _norm_by_seed(table[name], a, found[a].samples)
            shown += f", by {by_seed.mean():.2f}" + (f" ± {student_half(by_seed):.2f}" if len(by_seed) > 1 else "")
        lines.append((f"{name}{of}: norm at that error does not grow with m", shown, len(norms) > 1 and not growing))
        flat = [
            (a, b) for a, b in zip(list(norms)[:-1], list(norms)[1:], strict=True)
            if abs(np.log(np.mean(source[a]) / np.mean(source[b]))) < np.log(1.3)
        ]  # fmt: skip
        if flat:
            worst = max(abs(norms[a] / norms[b] - 1) for a, b in flat)
            lines.append((f"{name}{of}: norm flat within 30 % where the source error is", f"{worst:.0%}", worst <= 0.3))
        else:
            lines.append((f"{name}{of}: norm flat within 30 % where the source error is", "the source error is flat nowhere", None))
    return lines


def _norm_by_seed(surface: Surface, m: Any, n: float) -> np.ndarray:
    """(S,) linear in log n, as ``Required.norm``, which is their mean."""
    norms = surface.norms[list(surface.qualities).index(m)]
    return np.array([np.interp(np.log(n), np.log(surface.samples), of_seed) for of_seed in norms.T])


def report(main: Outcome, control: Outcome, level: float) -> bool:
    """Prints everything; whether all requirements are met."""
    table = surfaces(main.cells)
    for name, surface in table.items():
        print("\n".join(surface_lines(f"{name}: relative error on the target", surface, main.source)))
    for name, surface in surfaces(control.cells).items():
        what = f"{name}, source labels shuffled: relative error on the target"
        print("\n".join(surface_lines(what, surface, control.source)))
    print(f"samples for a relative error of {level:g}, 95 % intervals over seeds")
    for name, surface in table.items():
        print("\n".join(required_lines(name, surface.required(level))))
    for name, surface in table.items():
        if surface.qualities != (None,):
            laws = compare_laws(surface.mean, [m for m in surface.qualities if m is not None], surface.samples)
            floor, product = laws.floor, laws.product
            assert product is not None and laws.product_held_out is not None
            eps, sizes = (", ".join(f"{value:.3g}" for value in values) for values in (floor.floors, floor.sizes))
            shown = f"eps {eps}; c {sizes}; k {floor.exponent:.2f}"
            print(f"{name:8} eps_m + (c_m / n)^k: {shown}; held out: log error off by {laws.floor_held_out:.3f}")
            shown = f"delta {product.delta:.3g}, gamma {product.gamma:.3g}, alpha {product.alpha:.2f}, beta {product.beta:.2f}"
            print(f"{name:8} delta (gamma + m^-alpha) n^-beta: {shown}; held out: log error off by {laws.product_held_out:.3f}")
            print(f"{name:8} a constant for each m; held out: log error off by {laws.constant_held_out:.3f}")
    met = True
    for what, value, holds in requirements(main, control, level):
        met &= holds is not False
        print(f"{what:75} {value}: {'not tested' if holds is None else 'met' if holds else 'NOT MET'}")
    return met


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default: %(default)s)")
    parser.add_argument("--error", type=float, default=0.2, help="relative error whose samples are asked for (default: %(default)s)")
    args = parser.parse_args()
    if args.seeds < 1 or args.first < 0:
        parser.error(f"--seeds {args.seeds} --first {args.first}: at least one seed is required, and the first is at least 0")
    if not 0 < args.error < float("inf"):
        parser.error(f"--error {args.error}: a number above 0 is required")
    console, started = Console(), time.perf_counter()
    use_compile_cache("auto", console)
    toy, seeds = Toy(), range(args.first, args.first + args.seeds)
    found = experiment(toy, seeds, tuple(methods(toy)), progress=console)
    control = experiment(toy, seeds, ("lora", "partial"), shuffle=True, progress=console)
    met = report(found, control, args.error)
    print(f"{time.perf_counter() - started:.0f} s, {time.process_time():.0f} s of CPU")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
