"""The scale "modular": every module moves by its part of one step, measured in the module's own norm (arXiv 2609.25745).

With a sigma of R the noise Z of module p becomes R Z / (s_p |Z|_p), where s_p = m_M / m_p: m_p is the module's mass, m_M that of all
modules. |Z|_p is the largest Euclidean norm of a row for an embedding and the spectral norm for a matrix, in whose place stands what is
expected of it (``noise.norms``); for a vector the draw's own largest absolute element, by which ``Noise.of_leaf`` has it divided. A kind of
module has a mass, divided over its modules (a fused projection counts as those that it holds), and a module's over its tensors. The paper's
rho, a factor from 1/2 to 2 measured on prompts, is left out; it calls it optional.

Nearly all of the squared length of such a step lies in the embedding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax.numpy as jnp

from perturbjax.noise.distributions import DISTRIBUTIONS
from perturbjax.noise.norms import spectral

Form = Literal["embedding", "matrix", "vector"]


class LeafNoise(Protocol):
    """What is read of the ``Noise`` of a leaf."""

    @property
    def distribution(self) -> str: ...
    @property
    def rank(self) -> int | None: ...
    @property
    def unit(self) -> bool: ...


@dataclass(frozen=True)
class Kind:
    """Modules whose path matches ``pattern``, case ignored, and what they weigh together."""

    pattern: str
    mass: float


NORMS, EMBEDDING = Kind(r"norm|(^|/)ln|(^|/)scale$", 0.1), Kind(r"embed|(^|[/_])emb([/_]|$)|(^|/)w[tp]e(/|$)", 1.0)
KINDS = (
    NORMS,
    Kind(r"(^|/)(lm_)?head(/|$)|unembed", 1.0),
    EMBEDDING,
    Kind(r"att", 0.5),
    Kind(r"mlp|ffn|feed_?forward|expert", 0.5),
    Kind(r"", 0.1),
)
"""The first that matches a leaf's path is its kind. Only kinds that a model has count."""
FUSED = ((r"qkv", 3), (r"gate_?up|up_?gate", 2))
"""Pattern of a module -> how many modules it holds."""


def factors(leaves: Mapping[str, Any], of_leaf: Callable[[str, tuple[int, ...]], LeafNoise]) -> dict[str, float]:
    """Path -> factor of sigma, for every floating-point leaf of a model; shapes and types are enough. ``of_leaf``: that of a ``Noise``.

    Leading dims that are no part of a vector, a matrix or an embedding are layers, experts, positions of a kernel: so many modules.
    """
    floating = {path: jnp.shape(leaf) for path, leaf in leaves.items() if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)}
    kinds = {path: _kind(path) for path in floating}
    forms: dict[str, Form] = {path: _form(path, shape, kinds[path]) for path, shape in floating.items()}
    modules: dict[tuple[Kind, str], list[str]] = {}
    for path in floating:
        modules.setdefault((kinds[path], path.rpartition("/")[0]), []).append(path)
    # How many modules of this name there are, and as how many each counts.
    copies = {key: max(_copies(floating[path], forms[path]) for path in paths) for key, paths in modules.items()}
    fused = {key: next((count for pattern, count in FUSED if re.search(pattern, key[1], re.IGNORECASE)), 1) for key in modules}
    counted = {kind: sum(copies[key] * fused[key] for key in modules if key[0] == kind) for kind in set(kinds.values())}
    total = sum(kind.mass for kind in counted)
    return {
        path: kind.mass
        * fused[kind, name]
        / counted[kind]
        / len(paths)
        / total
        / _norm(floating[path], forms[path], of_leaf(path, floating[path]))
        for (kind, name), paths in modules.items()
        for path in paths
    }


def holds_vectors(path: str, shape: tuple[int, ...]) -> bool:
    """Whether a leaf of this shape is one vector, or one for each layer."""
    return _form(path, shape, _kind(path)) == "vector"


def _kind(path: str) -> Kind:
    return next(kind for kind in KINDS if re.search(kind.pattern, path, re.IGNORECASE))


def _form(path: str, shape: tuple[int, ...], kind: Kind) -> Form:
    if len(shape) < 2 or kind is NORMS or re.search(r"(^|/)(b|bias)$", path):
        return "vector"
    return "embedding" if kind is EMBEDDING else "matrix"


def _copies(shape: tuple[int, ...], form: Form) -> int:
    return math.prod(shape[:-1] if form == "vector" else shape[:-2])


def _norm(shape: tuple[int, ...], form: Form, noise: LeafNoise) -> float:
    """What is expected of the norm of one tensor's noise of a shape (..., rows, columns)."""
    largest, rank = DISTRIBUTIONS[noise.distribution].largest, noise.rank
    rows, columns = (1, 1, *shape)[-2:]
    if form == "vector":
        return 1.0 if noise.unit else largest(columns, 1)
    if rank is None:
        return largest(rows, columns) if form == "embedding" else spectral(rows, columns)
    # E = A B^T / sqrt(r) with r far below both dims: the columns of B are nearly orthogonal, of length sqrt(columns).
    return largest(rows, rank) * math.sqrt(columns / rank) if form == "embedding" else math.sqrt(rows * columns / rank)
