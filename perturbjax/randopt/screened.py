"""Which candidates of the whole population a search scores; screening.json, which says it of a search that screens."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from perturbjax.errors import InputError
from perturbjax.noise import Population, Subset
from perturbjax.randopt.config import Search
from perturbjax.records import from_json, to_json
from perturbjax.runs.files import read_json, write_json
from perturbjax.runs.rundir import RunDirectory
from perturbjax.tree import digest

VERSION = 1
"""Of the layout of screening.json."""


@dataclass(frozen=True)
class Screening:
    """What a screening chose, and what it cost.

    Attributes:
        identity: digest of the identity of the run whose it is.
        indices: (n,) candidates that are run, ascending, in the whole population.
        products: (n,) the change of the mean log-odds that the gradient predicts for each.
        drawn: (n,) whether it was drawn at random, and not put first by the gradient.
        deviations: standard deviation of the products of all candidates of a sigma, by the sigmas in their order.
        examples: that the gradient was made of; ``log_odds``: the base's mean there.
        tokens: of plain inference, that take as many operations as the gradient and all products (``searchers.Cost``).
        numbers: of noise that were drawn, which no operation counts.
        seconds: wall time, compilation included.

    Raises:
        ValueError: the parts contradict each other; the field is named.
    """

    version: int
    identity: str
    indices: tuple[int, ...]
    products: tuple[float, ...]
    drawn: tuple[bool, ...]
    deviations: tuple[float, ...]
    examples: int
    log_odds: float
    tokens: int
    numbers: int
    seconds: float

    def __post_init__(self) -> None:
        if self.version != VERSION:
            raise ValueError(f"version {self.version}: this release reads {VERSION}; use the release that wrote it")
        if not self.indices or not len(self.indices) == len(self.products) == len(self.drawn):
            raise ValueError("indices, products and drawn: as many of each are required, and at least one")

    def of(self, population: Population) -> Subset:
        """The candidates that are run."""
        return Subset(population, np.array(self.indices))


def write_screening(directory: RunDirectory, screening: Screening) -> None:
    """Writes screening.json, atomically."""
    content = to_json(screening)
    write_json(directory.screening, content | {"digest": digest(content)})


def read_screening(directory: RunDirectory, search: Search) -> Screening | None:
    """The screening of an existing run; None where its searcher has none.

    Raises:
        InputError: nothing was screened yet, or the file is damaged or another run's.
    """
    if search.searcher != "screen":
        return None
    path, again = directory.screening, f"perturbjax randopt ... --out {directory.path} --resume"
    if not path.exists():
        raise InputError(f"{directory.path}: no screening.json, its candidates are not chosen yet; continue it with: {again}")
    try:
        return _checked(read_json(path), str(path), directory, search)
    except InputError as error:
        advice = "" if "start anew" in str(error) else f"; restore it, or delete {directory.path} to start anew"
        raise InputError(f"{error}{advice}") from error


def scored_candidates(search: Search, screening: Screening | None, scores: np.ndarray) -> Population | Subset:
    """The candidates that a search scores, counted from 0, as far as their choice is known.

    Args:
        search: the settings, with sigmas.
        screening: of a search that screens.
        scores: (N, D), NaN where a candidate was not asked; halving chooses by them.
    """
    population, halving = search.to_population(), search.halving
    if halving is not None:
        return halving.candidates_of(population, scores)
    if search.searcher == "screen":
        assert screening is not None, "not chosen yet"
        return screening.of(population)
    return population


def _checked(content: dict[str, Any], where: str, directory: RunDirectory, search: Search) -> Screening:
    said = content.pop("digest", None)
    found = from_json(Screening, content, where)
    if said != digest(content):
        raise InputError(f"{where}: damaged, the content does not match its digest")
    if found.identity != directory.read_config()["identity_digest"]:
        raise InputError(f"{where}: the screening of another run")
    try:
        count = len(found.of(search.to_population()))
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    if count != search.population or len(found.deviations) != len(search.to_population().sigmas):
        raise InputError(f"{where}: {count} candidates, the settings of the run say {search.population}")
    return found
