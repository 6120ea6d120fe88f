"""Adapters: what is trained in place of all parameters, for any parameter pytree, by path rules.

An adapter is a static setting; what it trains is a pytree of its own, float32, which ``train.loop.fit`` takes as ``Problem.params``. The
base is frozen: it is read, never written, and has no optimizer state.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> params = {"dense": {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}}
    >>> lora = LoRA(rank=2, rules=("kernel$",))
    >>> trained = lora.init(params, jax.random.key(0))
    >>> trainable_count(trained)
    14
    >>> bool((lora.apply(params, trained)["dense"]["kernel"] == params["dense"]["kernel"]).all())
    True

| method | trains | at the start |
|---|---|---|
| ``LoRA`` | W + (alpha / rank) A B, two factors a matrix (Hu et al., arXiv 2106.09685) | the base exactly: B is zero |
| ``Bottleneck`` | y + up(gelu(down(y))) after a matrix (Houlsby et al., arXiv 1902.00751) | the base exactly: up is zero |
| ``Partial`` | the leaves that rules name; ``head``, ``bitfit`` and ``full`` are such rules | the base exactly |

Rules are searched for in paths (``tree.leaf_paths``). Those of a Flax NNX state end in ``value`` (``dense/kernel/value``): ``kernel`` finds
them, ``kernel$`` finds those of nested dicts alone, which ``nnx.to_pure_dict`` makes of a state.

Two verbs give the parameters to run a model with, both differentiable, under ``vmap`` too (many adapters on one base):

- ``apply``: a pytree like the base's, for any function. LoRA is added to the matrices (merged), in float32 and rounded once.
- ``attach``: for a function that has a place for adapters, decoder or vision transformer. LoRA's factors lie beside their matrix, so that
  x W is one product that all adapters of a ``vmap`` share where x is shared, and no change of the size of W is made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from perturbjax.errors import InputError, positive_integer
from perturbjax.models.adapter_layers import BOTTLENECK, FACTORS
from perturbjax.models.adapter_rules import STACKED, Leaves, Matrix, Rules, as_rules, select
from perturbjax.models.config import DecoderConfig
from perturbjax.tree import Params, leaf_paths, map_with_paths, nest, path_hash

PROJECTIONS = (r"^layers/(attention/[qkvo]|mlp/(gate|up|down))/kernel$",)
"""The seven matrices of a decoder's layers."""
BLOCK_ENDS = (r"^layers/(attention/o|mlp/down)/kernel$",)
"""The matrices that end attention and the ffn of a decoder's layers."""
VIT_PROJECTIONS = (r"^layers/(qkv|o|up|down)/kernel$",)
"""The four matrices of a vision transformer's layers (``models/vit.py``)."""
VIT_BLOCK_ENDS = (r"^layers/(o|down)/kernel$",)
"""The matrices that end attention and the MLP of a vision transformer's layers."""


def of_decoder(config: DecoderConfig, rules: tuple[str, ...] = PROJECTIONS) -> tuple[Leaves | str, ...]:
    """These rules, for the matrices that have a place for an adapter: experts have none."""
    return (Leaves("^layers/mlp/", train=False), *rules) if config.num_experts else rules


class Adapter(Protocol):
    """A way to adapt a base. ``trained`` is a pytree of the trained arrays alone, by path."""

    def init(self, params: Params, key: jax.Array | int) -> Any:
        """What is trained, at its start, float32.

        Args:
            params: the base; shapes do for ``LoRA`` and ``Bottleneck``.
            key: a typed key, or a seed. Each leaf draws from ``fold_in(key, crc32(path))``.

        Raises:
            InputError: a rule that matches nothing, or a rank above the smaller dim of a matrix.
        """
        ...

    def apply(self, params: Params, trained: Any) -> Params:
        """The parameters to run any function of them with. Leaves that are not adapted are the base's own."""
        ...

    def attach(self, params: Params, trained: Any) -> Params:
        """The parameters to run a function with that has a place for adapters: decoder, vision transformer."""
        ...

    def norm(self, params: Params, trained: Any) -> jax.Array:
        """Size of the change, () float32: the Frobenius norm of what is added to the matrices, 0 at the start."""
        ...


@dataclass(frozen=True)
class LoRA:
    """Low-rank changes of matrices: y = x W + (alpha / rank) (x A) B.

    A is drawn from U(-1 / sqrt(in), 1 / sqrt(in)), as PEFT does; B is zero.

    Attributes:
        rank: columns of A.
        alpha: the change is multiplied by alpha / rank.
        rules: which matrices (..., in, out), as ``Leaves`` or patterns; the seven of a decoder's layers when left out.
        stacked: pattern of the leaves whose first axis is that of the layers; each layer has factors of its own. All other axes but the
            last are inputs: the kernel of a convolution (H, W, in, out) has A (H, W, in, rank) and B (rank, out).
    """

    rank: int = 8
    alpha: float = 16.0
    rules: tuple[Leaves | str, ...] = PROJECTIONS
    stacked: str = STACKED

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", as_rules(self.rules))
        positive_integer("rank", self.rank)
        if not 0 < self.alpha < math.inf:
            raise InputError(f"`alpha` {self.alpha}: a number above 0 is required")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def init(self, params: Params, key: jax.Array | int) -> Any:
        flat = {}
        for matrix in self.matrices(params):
            matrix.check_rank("rank", self.rank)
            shape, bound = (*matrix.stack, *matrix.inputs, self.rank), matrix.rows**-0.5
            flat[f"{matrix.path}/a"] = jax.random.uniform(_key(key, matrix.path), shape, jnp.float32, -bound, bound)
            flat[f"{matrix.path}/b"] = jnp.zeros((*matrix.stack, self.rank, matrix.out), jnp.float32)
        return nest(flat)

    def matrices(self, params: Params) -> tuple[Matrix, ...]:
        """The leaves that get factors."""
        return tuple(Matrix.of(path, leaf, self.stacked) for path, leaf in select(params, _rules(self), self.stacked).items())

    def apply(self, params: Params, trained: Any) -> Params:
        return self._added(params, trained, self.scale)

    def unmerge(self, params: Params, trained: Any) -> Params:
        """The base again, from what ``apply`` made of it: equal but for one rounding, so whoever still has the base keeps that."""
        return self._added(params, trained, -self.scale)

    def attach(self, params: Params, trained: Any) -> Params:
        flat = leaf_paths(trained)
        factors = {path[:-2]: (flat[path], self.scale * flat[f"{path[:-2]}/b"]) for path in flat if path.endswith("/a")}
        return _beside(params, {path: dict(zip(FACTORS, pair, strict=True)) for path, pair in factors.items()})

    def norm(self, params: Params, trained: Any) -> jax.Array:
        flat = leaf_paths(trained)
        factors = [_factors(flat, matrix.path, matrix, "a", "b") for matrix in self.matrices(params)]
        return self.scale * _product_norm(factors)

    def _added(self, params: Params, trained: Any, scale: float) -> Params:
        flat = leaf_paths(trained)

        def one(path: str, leaf: Any) -> Any:
            if f"{path}/a" not in flat:
                return leaf
            a, b = _factors(flat, path, Matrix.of(path, leaf, self.stacked), "a", "b")
            change = scale * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
            return _plus(jnp.asarray(leaf, jnp.float32), change.reshape(leaf.shape)).astype(leaf.dtype)

        return map_with_paths(one, params)


@dataclass(frozen=True)
class Bottleneck:
    """A small residual network after a matrix: y + up(gelu(down(y))), with y of its last axis.

    Decoder and vision transformer have it after attention and after the ffn, before they are added to the residual stream. Another
    function applies it by ``adapter_layers.bottleneck(params["dense"], y)`` after the layer whose kernel the rules name.

    Attributes:
        size: of the bottleneck.
        rules: the kernels that bottlenecks follow; those that end a decoder's attention and ffn when left out.
        stacked: as for ``LoRA``.
    """

    size: int = 16
    rules: tuple[Leaves | str, ...] = BLOCK_ENDS
    stacked: str = STACKED

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", as_rules(self.rules))
        positive_integer("size", self.size)

    def init(self, params: Params, key: jax.Array | int) -> Any:
        flat = {}
        for matrix in self.matrices(params):
            if self.size > matrix.out:
                raise InputError(f"`size` {self.size}: at most {matrix.out} is required, the outputs of {matrix.path}; lower it")
            shape, bound = (*matrix.stack, matrix.out, self.size), matrix.out**-0.5
            flat[f"{matrix.path}/down/kernel"] = jax.random.uniform(_key(key, matrix.path), shape, jnp.float32, -bound, bound)
            flat[f"{matrix.path}/down/bias"] = jnp.zeros((*matrix.stack, self.size), jnp.float32)
            flat[f"{matrix.path}/up/kernel"] = jnp.zeros((*matrix.stack, self.size, matrix.out), jnp.float32)
            flat[f"{matrix.path}/up/bias"] = jnp.zeros((*matrix.stack, matrix.out), jnp.float32)
        return nest(flat)

    def matrices(self, params: Params) -> tuple[Matrix, ...]:
        """The leaves that bottlenecks follow."""
        return tuple(Matrix.of(path, leaf, self.stacked) for path, leaf in select(params, _rules(self), self.stacked).items())

    def apply(self, params: Params, trained: Any) -> Params:
        return self.attach(params, trained)

    def attach(self, params: Params, trained: Any) -> Params:
        flat = leaf_paths(trained)
        paths = [path.removesuffix("/down/kernel") for path in flat if path.endswith("/down/kernel")]
        return _beside(params, {path: {name: flat[f"{path}/{part}"] for part, name in BOTTLENECK.items()} for path in paths})

    def norm(self, params: Params, trained: Any) -> jax.Array:
        flat = leaf_paths(trained)
        return _product_norm([(flat[f"{m.path}/down/kernel"], flat[f"{m.path}/up/kernel"]) for m in self.matrices(params)])


@dataclass(frozen=True)
class Partial:
    """The leaves that the rules name are trained themselves; ``trained`` holds their values.

    Attributes:
        rules: ``Leaves`` or patterns, first match wins.
    """

    rules: tuple[Leaves | str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rules", as_rules(self.rules))

    def init(self, params: Params, key: jax.Array | int) -> Any:
        return nest({path: jnp.asarray(leaf, jnp.float32) for path, leaf in select(params, _rules(self)).items()})

    def apply(self, params: Params, trained: Any) -> Params:
        flat = leaf_paths(trained)
        return map_with_paths(lambda path, leaf: flat[path].astype(leaf.dtype) if path in flat else leaf, params)

    def attach(self, params: Params, trained: Any) -> Params:
        return self.apply(params, trained)

    def norm(self, params: Params, trained: Any) -> jax.Array:
        return distance(self.init(params, 0), trained)


def head(pattern: str = "^head/") -> Partial:
    """The head alone, known by its path. A decoder whose head is its embedding has none: ``models.config.untied`` gives it one."""
    return Partial((pattern,))


def bitfit() -> Partial:
    """Biases and the scales of norms (Ben-Zaken et al., arXiv 2106.10199)."""
    return Partial((r"(^|/)(bias|scale)(/|$)",))


def full() -> Partial:
    """Every floating-point leaf."""
    return Partial(("",))


def trainable_count(trained: Any) -> int:
    """Numbers that are trained."""
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(trained))


def distance(start: Any, trained: Any) -> jax.Array:
    """Euclidean distance of what is trained from its start, () float32."""
    squares = jax.tree.map(lambda one, other: jnp.sum(jnp.square(other - one)), start, trained)
    return jnp.sqrt(sum(jax.tree.leaves(squares), jnp.float32(0)))


def _rules(adapter: LoRA | Bottleneck | Partial) -> Rules:
    return as_rules(adapter.rules)


def _key(key: jax.Array | int, path: str) -> jax.Array:
    return jax.random.fold_in(jax.random.key(key) if isinstance(key, int) else key, path_hash(path))


def _factors(flat: Mapping[str, Any], path: str, matrix: Matrix, first: str, second: str) -> tuple[jax.Array, jax.Array]:
    """The two factors of a matrix as (stack..., rows, r) and (stack..., r, out)."""
    a, b = flat[f"{path}/{first}"], flat[f"{path}/{second}"]
    return a.reshape(*matrix.stack, matrix.rows, a.shape[-1]), b


def _product_norm(factors: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
    """Frobenius norm of all A B together, from small products: |A B|^2 = sum of (A^T A) * (B B^T)."""
    squares = [jnp.sum((a.mT @ a) * (b @ b.mT)) for a, b in factors]
    return jnp.sqrt(jnp.maximum(sum(squares, jnp.float32(0)), 0.0))


@jax.custom_jvp
def _plus(base: jax.Array, change: jax.Array) -> jax.Array:
    """The sum, of which a change of zero leaves every bit: -0.0 + 0.0 would be 0.0."""
    return jnp.where(change == 0, base, base + change)


@_plus.defjvp
def _plus_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return _plus(*primals), tangents[0] + tangents[1]


def _beside(params: Params, leaves: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A copy of nested dicts with leaves beside each ``.../kernel``."""
    flat = dict(leaf_paths(params))
    for path, new in leaves.items():
        parent, _, name = path.rpartition("/")
        if not isinstance(params, dict) or name != "kernel" or path not in flat:
            raise ValueError(f"params: {path} is no leaf called kernel in nested dicts, beside which an adapter has its place")
        flat |= {f"{parent}/{key}" if parent else key: leaf for key, leaf in new.items()}
    return nest(flat)
