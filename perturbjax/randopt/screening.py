"""``--searcher screen``: one gradient of the search questions chooses which candidates of a huge population are run.

The gradient is that of the mean log-odds of the right choice on the search split, at the base, under the prompt of the candidates. Each
candidate gets its inner product with it (``searchers.screening``); none is run. Of every sigma the same share is chosen, because products
are proportional to sigma: those with the highest products, and beside them some drawn at random from the others. These keep diversity, and
their scores beside those of the others show what the screening is worth.

Every process makes all of it on one device, so that the mesh changes a product by no more than rounding; process 0's choice is the run's.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from perturbjax import _compat
from perturbjax.cluster import broadcast_json, on_main
from perturbjax.errors import InputError
from perturbjax.inference import Engine
from perturbjax.inference.log_odds import GRADIENT_TOKENS, objective_gradient
from perturbjax.noise import Population, scales
from perturbjax.randopt.screened import VERSION, Screening, read_screening, write_screening
from perturbjax.records import from_json, to_json
from perturbjax.report.words import count
from perturbjax.runs.console import Progress
from perturbjax.runs.identity import identity_digest
from perturbjax.runs.rundir import RunDirectory
from perturbjax.searchers import Cost, choose, inner_products
from perturbjax.tree import derived_seed

if TYPE_CHECKING:
    from perturbjax.randopt.setup import Parts

DRAWN = 0.25
"""Share of the chosen candidates that is drawn at random."""


def keep_screening(parts: "Parts", directory: RunDirectory) -> Screening | None:
    """The screening that a run has committed; None where it is yet to be made, or the searcher has none.

    Raises:
        InputError: it is damaged, or missing although candidates were scored.
    """

    def on_process_0() -> Any:
        search = parts.config.search
        if search.searcher != "screen":
            return None
        if directory.screening.exists():
            return to_json(read_screening(directory, search))
        if directory.state.exists() or directory.candidates.exists():
            raise InputError(
                f"{directory.screening}: missing, the saved state is not; restore it, or delete {directory.path} to start anew"
            )
        return None

    found = on_main(on_process_0)
    return None if found is None else from_json(Screening, found, str(directory.screening))


def screen(parts: "Parts", engine: Engine, directory: RunDirectory, progress: Progress) -> Screening:
    """Screens, chooses and commits. All processes of a run call it together and get the same.

    Raises:
        InputError: the gradient does not fit on one device, or is not finite.
    """
    started = time.perf_counter()
    search, population, noise = parts.config.search, parts.population, parts.noise
    batch = engine.prepare(parts.splits.search, parts.template, GRADIENT_TOKENS)
    progress.note(
        f"screening {count(len(population))} candidates by one gradient of {len(batch.examples)} search examples; "
        f"{count(search.population)} of them are run"
    )
    params = _on_one_device(engine)
    try:
        value, gradient = objective_gradient(params, parts.model.config, batch, "log_odds")
        products = inner_products(gradient, population, noise, scales(params, noise), None, progress)
    except jax.errors.JaxRuntimeError as error:
        if not _compat.is_out_of_memory(error):
            raise
        raise InputError(
            "`searcher` screen: one device has no memory for the model, its gradient and one pass of both; a smaller model or a larger "
            "device is required"
        ) from error
    if not (np.isfinite(value) and np.isfinite(products).all()):
        raise InputError("`searcher` screen: the gradient of the base's log-odds is not finite on the search examples; leave it out")
    chosen, drawn = choose_within_sigmas(products, population, search.population, search.seed)
    cost = Cost.of(parts.model.config, parts.model.params, noise)
    noises = len(population) // 2 if population.antithetic else len(population)
    found = Screening(
        version=VERSION,
        identity=identity_digest(parts.identity),
        indices=tuple(chosen.tolist()),
        products=tuple(products[chosen].tolist()),
        drawn=tuple(drawn.tolist()),
        deviations=tuple(float(products[each].std()) if len(each) else 0.0 for each in by_sigma(population)),
        examples=len(batch.examples),
        log_odds=value,
        tokens=round((cost.gradient(batch.prompt_tokens) + cost.products(noises)) / cost.forward(1)),
        numbers=noises * cost.drawn,
        seconds=time.perf_counter() - started,
    )
    found = from_json(Screening, broadcast_json(to_json(found)), str(directory.screening))
    on_main(lambda: write_screening(directory, found))
    return found


def choose_within_sigmas(products: np.ndarray, population: Population, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Chooses as many candidates of each sigma, a share of them at random (``searchers.choose``).

    Args:
        products: (N,) of the population.
        population: N candidates.
        size: how many are chosen, at least 2.
        seed: of the draw.

    Returns:
        (size,) candidate indices, ascending, and bool (size,), which of them were drawn.
    """
    mine = by_sigma(population)
    counts = in_turn(size, [len(each) for each in mine])
    drawn = in_turn(max(2, round(DRAWN * size)), counts)
    first, others = [], []
    for number, (each, of_all, of_drawn) in enumerate(zip(mine, counts, drawn, strict=True)):
        if of_all:
            found = choose(products[each], of_all, of_drawn / of_all, derived_seed(seed, f"explore {number}"))
            first.append(each[found.promising])
            others.append(each[found.drawn])
    indices = np.concatenate([*first, *others])
    order = np.argsort(indices)
    return indices[order], (np.arange(size) >= sum(map(len, first)))[order]


def by_sigma(population: Population) -> list[np.ndarray]:
    """Indices of the candidates of each sigma, ascending, by the sigmas in their order."""
    found = population.sigma_of(np.arange(len(population)))
    return [np.flatnonzero(found == np.float32(sigma)) for sigma in population.sigmas]


def in_turn(total: int, limits: Sequence[int]) -> list[int]:
    """Numbers that add up to ``total``, handed out one at a time in turn to those who have not reached their limit.

    >>> in_turn(7, [9, 1, 9])
    [3, 1, 3]
    """
    given = [0] * len(limits)
    while total:
        for number, limit in enumerate(limits):
            if total and given[number] < limit:
                given[number], total = given[number] + 1, total - 1
    return given


def _on_one_device(engine: Engine) -> Any:
    """The whole base on one device of this process."""
    if engine.params.dims:
        return jax.device_put(jax.tree.map(np.asarray, engine.model.params), jax.local_devices()[0])
    return jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, engine.params.arrays)
