"""Runs a jaxpr with lazy parameters. Rules, in the order in which they are tried for each equation:

1. a ragged dot: the noise is made right there, one candidate's at a time, and also where nothing is lazy, because JAX cannot vmap it
   (``ragged``);
2. nothing lazy among the operands: bound as it is;
3. a nested program (jit, remat, custom_jvp, custom_vjp): evaluated in place, lazy values stay lazy;
4. control flow (scan, while, cond) and shard_map: emitted again, lazy values pass inside (``control``);
5. a view (transpose, reshape, convert, ...): remembered;
6. a part (slice, dynamic_slice, gather of rows): the block is narrowed, so noise is made for that part alone (``consume``);
7. a consumer (dot_general, convolution): the noise is made right there (``consume``);
8. anything else: the value is materialized, recorded as a use, and the equation bound as it is.

Forward only. A parameter that is used twice gets the same noise twice, because noise is a function of key and position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax

from perturbjax import _compat
from perturbjax.interpret.array import LazyArray
from perturbjax.interpret.consume import CONSUMERS
from perturbjax.interpret.control import CONTROL
from perturbjax.interpret.ragged import ragged_dot
from perturbjax.interpret.usage import Usage
from perturbjax.interpret.views import VIEWS, View

if TYPE_CHECKING:
    from jax.extend.core import Jaxpr, JaxprEqn

_NESTED = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint", "custom_jvp_call", "custom_vjp_call"}


@dataclass(frozen=True)
class Interpreter:
    """Evaluates jaxprs over arrays and LazyArrays.

    Attributes:
        usage: gets every use of a lazy parameter.
    """

    usage: Usage

    def run(self, jaxpr: Jaxpr, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        """Outputs of ``jaxpr``, some of them possibly lazy."""
        env: dict[Any, Any] = {}

        def read(atom: Any) -> Any:
            return atom.val if _compat.is_literal(atom) else env[atom]

        env.update(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))
        for eqn in jaxpr.eqns:
            # Scopes are part of what a profile shows; an equation of the traced program keeps its own.
            with jax.named_scope(str(eqn.source_info.name_stack)), eqn.ctx.manager:
                outputs = self._equation(eqn, [read(atom) for atom in eqn.invars])
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def run_nested(self, program: Any, args: Sequence[Any]) -> list[Any]:
        """Outputs of a program in an equation's parameters."""
        return self.run(*_compat.open_jaxpr(program), args)

    def _equation(self, eqn: JaxprEqn, values: list[Any]) -> list[Any]:
        name = eqn.primitive.name
        if name == "ragged_dot_general":
            return ragged_dot(self, eqn, values)
        if not any(isinstance(value, LazyArray) for value in values):
            return bind(eqn, values)
        if name in _NESTED:
            return self.run_nested(eqn.params["jaxpr" if "jaxpr" in eqn.params else "call_jaxpr"], values)
        if name in CONTROL:
            return CONTROL[name](self, eqn, values)
        if name in VIEWS and len(values) == 1:
            return [values[0].viewed(View.of(eqn.primitive, eqn.params))]
        if name in CONSUMERS and (outputs := CONSUMERS[name](self, eqn, values)) is not None:
            return outputs
        reason = "its rule does not cover this use" if name in CONSUMERS else "no rule for this primitive"
        shape = getattr(eqn.outvars[0].aval, "shape", ()) if eqn.outvars else ()
        return bind(eqn, [self.materialize(value, name, None if _broadcast(value, shape) else reason) for value in values])

    def materialize(self, value: Any, primitive: str, reason: str | None = None) -> Any:
        """The value itself, perturbed if it is lazy; the use is recorded, with the reason if it is not a use in place."""
        if not isinstance(value, LazyArray):
            return value
        self.usage.record(value, primitive, reason)
        return value.materialize()


def _broadcast(value: Any, shape: tuple[int, ...]) -> bool:
    """Whether a lazy operand is broadcast to a result of ``shape`` (a bias of several dims): then it is smaller than that activation."""
    if not isinstance(value, LazyArray):
        return False
    aval = value.aval
    stretched = aval.ndim == len(shape) and all(n in (1, m) for n, m in zip(aval.shape, shape, strict=True)) and aval.shape != shape
    return stretched or aval.size > value.base.size


def bind(eqn: JaxprEqn, values: Sequence[Any]) -> list[Any]:
    """One equation as it stands."""
    # In a loop over rows all of the carry varies as the condition does; what is written for less fits it then.
    if eqn.primitive.name == "pvary":
        return [_compat.varying(values[0], eqn.params["axes"])]
    outputs = eqn.primitive.bind(*_compat.varying_alike(values), **eqn.primitive.get_bind_params(eqn.params))
    return list(outputs) if eqn.primitive.multiple_results else [outputs]
