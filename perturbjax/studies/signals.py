"""1-D signals: what pretraining makes of the neighborhood of a network's weights, in less than two minutes on a CPU.

The experiment of "Neural Thickets" (Gan and Isola, arXiv 2603.12228) with which the paper explains its regimes. A small network predicts
the next value of a signal from ten, and so forecasts sixty. Around three bases (untrained; pretrained on lines; pretrained on lines and
waves) candidates are scored on a few signals of one family, the best K are kept, and their forecasts are averaged. Signals that score, and
signals that measure, are drawn apart. Errors are relative to the better of two forecasts without a model: 1 is worth nothing, 0 is perfect.

The rule that names a regime is ours. A candidate *solves* a family if its error is at most ``SOLVED`` and at least ``MARGIN`` lower than
its base's. **thicket**: at least ``DENSE`` of the candidates solve it. Fewer do: **plateau** where the base itself has an error of at most
``SOLVED``, **needle** where it has not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

import perturbjax as pj
from perturbjax.errors import InputError
from perturbjax.report.words import percent
from perturbjax.runs.config import check_positive, check_seed
from perturbjax.runs.console import SILENT, Progress
from perturbjax.runs.machine import require
from perturbjax.studies import forecasting as toy
from perturbjax.studies.estimates import Estimate, mean_of
from perturbjax.tree import derived_seed

Regime = Literal["needle", "plateau", "thicket"]
SOLVED = 0.5
"""Largest error of a solution, relative to the forecast without a model."""
MARGIN = 0.1
"""By what part of the base's error a candidate must be better to count."""
DENSE = 0.1
"""Share of candidates above which solutions are a thicket."""
BASES = {"untrained": (), "lines only": ("line",), "mixed": toy.FAMILIES}
"""What each base is pretrained on."""
SHOWN = "sine"
"""The family of the forecasts in the figure."""

_PRETRAINING = 4096  # signals of a base's corpus
_TOGETHER = 50  # candidates under one vmap: measured, the fastest on a CPU
_NOISE = pj.Noise()


@dataclass(frozen=True)
class Config:
    """What the study repeats. Field names are the flags of ``perturbjax study signals``."""

    seeds: int = 10
    """Repetitions: each draws its own signals, trains its own bases and samples its own candidates."""
    population: int = 1000
    """N, candidates around each base."""
    top_k: int = 10
    """K, how many of the best forecast together."""
    sigma: float = 0.002
    """Noise scale around the pretrained bases, the paper's."""
    untrained_sigma: float = 0.05
    """Noise scale around the untrained base, the paper's."""
    steps: int = 3000
    """Training steps of a pretrained base."""
    signals: int = 16
    """Signals of each family that score the candidates; as many others measure their density."""
    test_signals: int = 64
    """Yet other signals of each family, on which the base and the ensembles are measured."""
    seed: int = 0
    """Of everything that is drawn."""

    def validate(self) -> None:
        """Raise ``InputError`` for settings that cannot be used."""
        check_positive(self, "seeds", "population", "top_k", "steps", "signals", "test_signals")
        if self.seeds < 2:
            raise InputError(f"`seeds` {self.seeds}: at least 2 are required, or there is no interval")
        if self.top_k > self.population:
            raise InputError(f"`top_k` {self.top_k}: at most `population` {self.population} can be kept; lower one or raise the other")
        for name in ("sigma", "untrained_sigma"):
            if not 0 < getattr(self, name) < 1e3:
                raise InputError(f"`{name}` {getattr(self, name)}: a number above 0 and below 1000 is required; 0.001 to 0.1 is usual")
        check_seed(self.seed)


@dataclass(frozen=True)
class Cell:
    """One base on one family; means over the seeds, all on signals that chose nothing.

    Attributes:
        base, family: which.
        regime: the one that most seeds have; ``agree``: how many of them.
        density: share of candidates that solve the family.
        base_error, top_error, random_error: of the base, of the mean forecast of the best K, and of K candidates that nobody chose.
        over_base, over_random: how much lower the error of the best K is than those, paired by seed.
    """

    base: str
    family: str
    regime: Regime
    agree: int
    density: Estimate
    base_error: Estimate
    top_error: Estimate
    random_error: Estimate
    over_base: Estimate
    over_random: Estimate


@dataclass(frozen=True)
class Example:
    """A test signal of the first seed around one base: its values, and the forecasts of the base, of the best K and of K not chosen."""

    base: str
    signal: tuple[float, ...]
    of_base: tuple[float, ...]
    of_top: tuple[float, ...]
    of_random: tuple[float, ...]


@dataclass(frozen=True)
class Results:
    """``cells``: every base on every family; ``examples``: one of each base, for the figure."""

    config: Config
    cells: tuple[Cell, ...]
    examples: tuple[Example, ...]

    @property
    def sentence(self) -> str:
        """What was found, a null as plainly as a finding."""
        found = []
        for base in BASES:
            by_regime = {name: [c.family for c in self.cells if (c.base, c.regime) == (base, name)] for name in get_args(Regime)}
            found.append(f"{base}: " + " and ".join(f"{name} on {', '.join(which)}" for name, which in by_regime.items() if which))
        over_base, over_random = (sum(getattr(c, name).above for c in self.cells) for name in ("over_base", "over_random"))
        worse = sum(c.over_base.below for c in self.cells)
        return (
            f"{'; '.join(found)}. The {self.config.top_k} best forecast clearly better than the base in {over_base} of {len(self.cells)} "
            f"cells and clearly worse in {worse}; clearly better than {self.config.top_k} random candidates in {over_random}."
        )


@dataclass(frozen=True)
class _Repetition:
    """One seed around one base, by family: errors (F,), densities (F,), and the example."""

    base: np.ndarray
    top: np.ndarray
    random: np.ndarray
    density: np.ndarray
    example: Example


def run(config: Config, progress: Progress = SILENT) -> Results:
    """Trains, searches and measures; writes nothing.

    Args:
        config: the settings.
        progress: told what goes on.

    Raises:
        InputError: a setting cannot be used, or optax is not installed.

    >>> from perturbjax.studies import signals
    >>> found = signals.run(signals.Config(seeds=2))  # doctest: +SKIP
    >>> print(found.sentence)  # doctest: +SKIP
    """
    config.validate()
    require("optax")
    repetitions: dict[str, list[_Repetition]] = {base: [] for base in BASES}
    with progress.bar("signals", config.seeds * len(BASES), unit="base") as bar:
        for repetition in range(config.seeds):
            for base in BASES:
                repetitions[base].append(_repeat(config, repetition, base))
                bar.update(sum(map(len, repetitions.values())))
    cells = tuple(_cell(base, number, repetitions[base]) for base in BASES for number in range(len(toy.FAMILIES)))
    return Results(config, cells, tuple(repetitions[base][0].example for base in BASES))


def _repeat(config: Config, repetition: int, base: str) -> _Repetition:
    # Bases of one repetition share signals, candidates and initial weights, so that nothing but the pretraining differs.
    seed = derived_seed(config.seed, f"signals {repetition}")
    generator = np.random.default_rng(seed)
    chosen_on, density_on, test = (
        [toy.draw(family, count, generator) for family in toy.FAMILIES] for count in (config.signals, config.signals, config.test_signals)
    )
    initial, trained = jax.random.split(jax.random.key(seed))
    params = toy.random_net(initial)
    if families := BASES[base]:
        corpus = np.concatenate([toy.draw(family, _PRETRAINING // len(families), generator) for family in families])
        params = toy.train(params, jnp.asarray(corpus), trained, config.steps)

    population = pj.Population(seed, config.population, (config.sigma if families else config.untrained_sigma,))
    scores = np.asarray(candidate_scores(params, population[:], jnp.asarray(np.concatenate([*chosen_on, *density_on]))))
    scores = scores.reshape(config.population, 2, len(toy.FAMILIES), config.signals)
    figures, forecasts = np.zeros((4, len(toy.FAMILIES))), {}
    for number, family in enumerate(toy.FAMILIES):
        best = pj.top_k(scores[:, 0, number], config.top_k)
        contexts, future = test[number][:, : toy.CONTEXT], test[number][:, toy.CONTEXT :]
        of = {
            "base": np.asarray(_base_forecast(params, contexts)),
            "top": _mean_forecast(population, best, params, contexts),
            "random": _mean_forecast(population, np.arange(config.top_k), params, contexts),  # candidates are drawn independently
        }
        errors = [float(np.square(made - future).mean(dtype=np.float64)) / toy.trivial_error(test[number]) for made in of.values()]
        errors_of_candidates = -scores[:, 1, number].mean(axis=1, dtype=np.float64)
        base_error = -float(np.asarray(_base_score(params, density_on[number])).mean(dtype=np.float64))
        solved = errors_of_candidates <= min(SOLVED * toy.trivial_error(density_on[number]), (1 - MARGIN) * base_error)
        figures[:, number] = [*errors, solved.mean()]
        if family == SHOWN:
            forecasts = {f"of_{name}": tuple(made[0].tolist()) for name, made in of.items()}
    shown = test[toy.FAMILIES.index(SHOWN)][0]
    return _Repetition(figures[0], figures[1], figures[2], figures[3], Example(base, tuple(shown.tolist()), **forecasts))


@jax.jit
def candidate_scores(params: toy.Net, candidates: pj.Candidate, signals: jax.Array) -> jax.Array:
    """Scores (N, B) of all candidates: noise is made inside the program, where a weight is used."""
    perturbed = pj.perturbed(toy.score, _NOISE)
    return jax.lax.map(lambda candidate: perturbed(candidate, params, signals), candidates, batch_size=_TOGETHER)


_base_forecast, _base_score = jax.jit(toy.forecast), jax.jit(toy.score)


def _mean_forecast(population: pj.Population, indices: np.ndarray, params: toy.Net, contexts: np.ndarray) -> np.ndarray:
    members = pj.Ensemble(population, indices, _NOISE, params)
    return np.asarray(members.apply(toy.forecast, params, contexts)).mean(axis=0)


def regime_of(density: float, base_error: float) -> Regime:
    """The name of the neighborhood, by the rule of this file."""
    if density >= DENSE:
        return "thicket"
    return "plateau" if base_error <= SOLVED else "needle"


def _cell(base: str, number: int, repetitions: list[_Repetition]) -> Cell:
    def of(name: str) -> np.ndarray:
        return np.array([getattr(repetition, name)[number] for repetition in repetitions])

    base_error, top, random, density = of("base"), of("top"), of("random"), of("density")
    regimes = list(map(regime_of, density.tolist(), base_error.tolist()))
    regime = max(get_args(Regime), key=regimes.count)
    means = [mean_of(values) for values in (density, base_error, top, random, base_error - top, random - top)]
    return Cell(base, toy.FAMILIES[number], regime, regimes.count(regime), *means)


def table(results: Results) -> Iterator[str]:
    """A line for every base and family, errors relative to the forecast without a model."""
    k = results.config.top_k
    yield "mean squared error over that of the better forecast without a model (1: worth nothing), means over seeds"
    yield f"{'base':<10} {'signals':<8} {'regime':<18} {'solve':>6} {'base':>7} {f'{k} rand.':>8} {f'{k} best':>8}  best under base, 95 %"
    for cell in results.cells:
        regime = f"{cell.regime} ({cell.agree} of {results.config.seeds})"
        errors = f"{cell.base_error.value:>7.3f} {cell.random_error.value:>8.3f} {cell.top_error.value:>8.3f}"
        solve = percent(cell.density.value)
        yield f"{cell.base:<10} {cell.family:<8} {regime:<18} {solve:>6} {errors}  {cell.over_base.words('+.3f')}"
