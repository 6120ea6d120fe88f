"""perturbjax: RandOpt and weight-space search for JAX.

A pretrained model is not a point but a neighbourhood. perturbjax samples seeded perturbations of the weights, scores them, keeps the best
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

from importlib import import_module
from typing import TYPE_CHECKING

from perturbjax._version import __version__ as __version__
from perturbjax.errors import InputError as InputError
from perturbjax.interpret import lazily as lazily
from perturbjax.interpret import lazy as lazy
from perturbjax.noise.dense import Noise as Noise
from perturbjax.noise.dense import Rule as Rule
from perturbjax.noise.dense import fingerprint as fingerprint
from perturbjax.noise.dense import perturb as perturb
from perturbjax.noise.population import Candidate as Candidate
from perturbjax.noise.population import Population as Population

if TYPE_CHECKING:
    from perturbjax.randopt.ensemble import Ensemble as Ensemble
    from perturbjax.randopt.voting import vote as vote
    from perturbjax.scoring import score_population as score_population
    from perturbjax.scoring.ask_tell import AskTell as AskTell
    from perturbjax.scoring.select import top_k as top_k

# Names whose modules pull in flax or orbax: loaded when first used, so that `import perturbjax` costs little more than `import jax`.
_LAZY = {
    "AskTell": "perturbjax.scoring.ask_tell",
    "Ensemble": "perturbjax.randopt.ensemble",
    "score_population": "perturbjax.scoring",
    "top_k": "perturbjax.scoring.select",
    "vote": "perturbjax.randopt.voting",
}

__all__ = [
    "AskTell",
    "Candidate",
    "Ensemble",
    "InputError",
    "Noise",
    "Population",
    "Rule",
    "__version__",
    "fingerprint",
    "lazily",
    "lazy",
    "perturb",
    "score_population",
    "top_k",
    "vote",
]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'perturbjax' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LAZY))
