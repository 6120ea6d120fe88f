"""perturbjax: what lies around a pretrained model's weights, for JAX.

A pretrained model is not a point but a starting place. perturbjax samples seeded perturbations of the weights, scores them, keeps the best
and lets them vote. It works on any JAX function of a parameter pytree:

    >>> import jax.numpy as jnp
    >>> import perturbjax as pj
    >>> noise = pj.Noise(distribution="gaussian")
    >>> population = pj.Population(seed=0, size=8, sigmas=(1e-3, 2e-3))
    >>> params = {"w": jnp.ones((2, 3))}
    >>> theta = pj.perturb(params, population[5], noise)
    >>> theta["w"].shape
    (2, 3)

Importing this module changes no JAX configuration and starts no backend.
"""

from perturbjax._version import __version__
from perturbjax.errors import InputError
from perturbjax.interpret import lazily, lazy, perturbed
from perturbjax.noise import Candidate, Noise, Population, Rule, perturb
from perturbjax.randopt.ensemble import Ensemble
from perturbjax.randopt.voting import vote
from perturbjax.scoring import AskTell, Scorer, score_population, top_k
from perturbjax.tree import fingerprint

__all__ = [
    "AskTell",
    "Candidate",
    "Ensemble",
    "InputError",
    "Noise",
    "Population",
    "Rule",
    "Scorer",
    "__version__",
    "fingerprint",
    "lazily",
    "lazy",
    "perturb",
    "perturbed",
    "score_population",
    "top_k",
    "vote",
]
