"""Control flow and shard_map around lazy parameters: the loop is emitted again with public jax functions, lazy values pass inside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.sharding import PartitionSpec

from perturbjax import _compat
from perturbjax.interpret.array import LazyArray
from perturbjax.interpret.usage import WHILE_STEPS
from perturbjax.interpret.views import View
from perturbjax.noise.block import Block, Slice

if TYPE_CHECKING:
    from jax.extend.core import JaxprEqn

    from perturbjax.interpret.interpreter import Interpreter


def _scan(run: Interpreter, eqn: JaxprEqn, values: list[Any]) -> list[Any]:
    """Lazy constants stay lazy; a lazy scanned input becomes, in each step, the slice of the base and its place in the leaf."""
    num_consts, num_carry = _compat.scan_operands(eqn)
    consts_end, carry_end = num_consts, num_consts + num_carry
    consts, init, xs = values[:consts_end], values[consts_end:carry_end], values[carry_end:]
    init = [run.materialize(value, "scan", "an initial carry changes from step to step") for value in init]
    length = eqn.params["length"]

    def sliceable(x: LazyArray) -> bool:
        return length > 0 and x.take(0, Slice(0, 1)) is not None

    xs = [run.materialize(x, "scan", "its views hide the scanned dim") if isinstance(x, LazyArray) and not sliceable(x) else x for x in xs]
    plain = [x for x in xs if not isinstance(x, LazyArray)]

    def body(carry: list[Any], scanned: tuple[jax.Array, list[Any]]) -> tuple[list[Any], list[Any]]:
        index, slices = scanned[0], iter(scanned[1])
        inner = [_step_slice(x, index) if isinstance(x, LazyArray) else next(slices) for x in xs]
        with run.usage.repeated(eqn.params["length"]):
            outputs = run.run_nested(eqn.params["jaxpr"], [*consts, *carry, *inner])
        outputs = [run.materialize(output, "scan", "an output of the loop") for output in outputs]
        return outputs[: len(init)], outputs[len(init) :]

    carry, ys = jax.lax.scan(
        body, init, (jnp.arange(length, dtype=jnp.int32), plain), length=length, reverse=eqn.params["reverse"], unroll=eqn.params["unroll"]
    )
    return [*carry, *ys]


def _step_slice(value: LazyArray, index: jax.Array) -> LazyArray:
    part = value.take(0, Slice(index, 1))
    assert part is not None
    return part.viewed(View.of(jax.lax.squeeze_p, {"dimensions": (0,)}))


def _while(run: Interpreter, eqn: JaxprEqn, values: list[Any]) -> list[Any]:
    """Lazy constants stay lazy, so their noise is made in every step; carries are materialized.

    Under ``jax.vmap`` the condition may have a value for each row: then the loop goes on while one is true, and the other rows stay as they
    are.
    """
    cond_end = eqn.params["cond_nconsts"]
    body_end = cond_end + eqn.params["body_nconsts"]
    cond_consts, body_consts = values[:cond_end], values[cond_end:body_end]
    init = [run.materialize(value, "while", "an initial carry changes from step to step") for value in values[body_end:]]

    def goes_on(carry: list[Any]) -> jax.Array:
        with run.usage.repeated(WHILE_STEPS):
            (predicate,) = run.run_nested(eqn.params["cond_jaxpr"], [*cond_consts, *carry])
        return run.materialize(predicate, "while", "a loop condition")

    def step(carry: list[Any]) -> list[Any]:
        with run.usage.repeated(WHILE_STEPS):
            outputs = run.run_nested(eqn.params["body_jaxpr"], [*body_consts, *carry])
        return [run.materialize(output, "while", "an output of the loop") for output in outputs]

    def step_of_rows(state: tuple[jax.Array, list[Any]]) -> tuple[jax.Array, list[Any]]:
        going, carry = state
        rows = [jax.lax.broadcast_in_dim(going, new.shape, range(going.ndim)) for new in carry]
        carry = [jax.lax.select(row, new, old) for row, new, old in zip(rows, step(carry), carry, strict=True)]
        return goes_on(carry), carry

    (predicate,) = _compat.open_jaxpr(eqn.params["cond_jaxpr"])[0].outvars
    if getattr(predicate.aval, "shape", ()):
        going, *init = _compat.varying_alike([goes_on(init), *init])  # what a row keeps or takes depends on its condition
        return jax.lax.while_loop(lambda state: state[0].any(), step_of_rows, (going, init))[1]
    return jax.lax.while_loop(goes_on, step, init)


def _cond(run: Interpreter, eqn: JaxprEqn, values: list[Any]) -> list[Any]:
    """Lazy operands stay lazy inside the branches, so noise is made in the branch that is taken."""

    def branch(closed: Any, operands: list[Any]) -> list[Any]:
        return [run.materialize(output, "cond", "an output of a branch") for output in run.run_nested(closed, operands)]

    index = run.materialize(values[0], "cond", "the index of the branch")
    branches = [partial(branch, closed) for closed in eqn.params["branches"]]
    if any(_compat.open_jaxpr(closed)[0].effects for closed in eqn.params["branches"]):
        return jax.lax.switch(index, branches, values[1:])  # a branch that is not taken must write nothing, so none is merely selected
    return _switch(branches)(index, values[1:])


def _switch(branches: list[Callable[[list[Any]], list[Any]]]) -> Callable[[jax.Array, list[Any]], list[Any]]:
    """``lax.switch``, which under vmap over the index would hand every branch a copy of its operands for each candidate, weights too."""

    @custom_vmap
    def switch(index: jax.Array, operands: list[Any]) -> list[Any]:
        return jax.lax.switch(index, branches, operands)

    @switch.def_vmap
    def rule(size: int, batched: list[Any], index: jax.Array, operands: list[Any]) -> tuple[list[Any], list[bool]]:
        axes = jax.tree.map(lambda b: 0 if b else None, batched[1])
        if batched[0]:
            results = [jax.vmap(branch, in_axes=(axes,), axis_size=size)(operands) for branch in branches]
            chosen = [jax.vmap(jax.lax.select_n)(index, *outputs) for outputs in zip(*results, strict=True)]
        else:
            chosen = jax.lax.switch(index, [jax.vmap(branch, in_axes=(axes,), axis_size=size) for branch in branches], operands)
        return chosen, [True] * len(chosen)

    return switch


def _shard_map(run: Interpreter, eqn: JaxprEqn, values: list[Any]) -> list[Any]:
    """A shard of a lazy parameter is a block of it that starts at this device's place on the mesh axis."""
    params, specs = eqn.params, eqn.params["in_specs"]
    # The specs say where an operand goes; inside, a constraint on its mesh axes is an error.
    values = [value.unconstrained() if isinstance(value, LazyArray) else value for value in values]
    prepared = [
        run.materialize(value, "shard_map", "a view of it is sharded")
        if isinstance(value, LazyArray) and (value.views or value.block.index is not None) and any(spec)
        else value
        for value, spec in zip(values, specs, strict=True)
    ]
    # The base follows the operand's own spec; key and step are the same on every device.
    in_specs = [_specs_of(value, spec) for value, spec in zip(prepared, specs, strict=True)]

    def local(*shards: Any) -> list[Any]:
        inner = [_shard(shard, spec) if isinstance(shard, LazyArray) else shard for shard, spec in zip(shards, specs, strict=True)]
        outputs = run.run_nested(params["jaxpr"], inner)
        return [run.materialize(output, "shard_map", "an output") for output in outputs]

    mapped = jax.shard_map(
        local, mesh=params["mesh"], in_specs=tuple(in_specs), out_specs=list(params["out_specs"]), check_vma=params["check_vma"],
        axis_names=set(params["newly_manual_axes"]),
    )  # fmt: skip
    return mapped(*prepared)


def _specs_of(value: Any, spec: PartitionSpec) -> Any:
    if not isinstance(value, LazyArray):
        return spec
    specs = replace(jax.tree.map(lambda _: PartitionSpec(), value), base=spec)
    if value.factors is None:
        return specs
    *leading, rows, columns = (*spec, *[None] * (value.base.ndim - len(spec)))
    return replace(specs, factors=(PartitionSpec(*leading, rows), PartitionSpec(*leading, columns)))


def _shard(shard: LazyArray, spec: PartitionSpec) -> LazyArray:
    if not any(spec):
        return shard
    axes = [*spec, *[None] * (shard.base.ndim - len(spec))]
    index = (None if axis is None else Slice(jax.lax.axis_index(axis) * n, n) for axis, n in zip(axes, shard.base.shape, strict=True))
    return replace(shard, block=Block(shard.block.global_shape, tuple(index)))


CONTROL: dict[str, Callable[..., list[Any]]] = {"scan": _scan, "while": _while, "cond": _cond, "shard_map": _shard_map}
