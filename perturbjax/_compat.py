"""Every dependence on one jax version or backend, with its reason. Nothing else in the package asks for versions or platforms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
from jax.interpreters import partial_eval

if TYPE_CHECKING:
    # jax.extend imports Pallas: a quarter of what `import perturbjax` would take beside jax. What is needed of it is imported when it runs.
    from jax.extend.core import Jaxpr, JaxprEqn


def compiler_options(platform: str) -> dict[str, bool | int | str] | None:
    """Options for the programs that make noise.

    On CPU: 512-bit vectors where the machine has them. XLA:CPU prefers 256 bits by default; the integer rounds of threefry then run at half
    the speed (``scripts/bench_noise.py``). On machines without AVX-512 the option changes nothing.
    """
    return {"xla_cpu_prefer_vector_width": 512} if platform == "cpu" else None


def varying_like(x: jax.Array, like: jax.Array) -> jax.Array:
    """``x``, varying over every manual mesh axis that ``like`` varies over.

    Inside ``shard_map`` jnp operations agree on this by themselves; a primitive that is bound directly does not. What an array varies over
    is read from its type, by a name that jax has changed before.
    """
    return varying(x, jax.typeof(like).mat.varying)


def varying_alike(values: Sequence[Any]) -> list[Any]:
    """Operands of one primitive, each varying over every manual mesh axis that one of them varies over."""
    found = [getattr(jax.typeof(value), "mat", None) for value in values]
    axes = frozenset[str]().union(*(each.varying for each in found if each is not None))
    return [value if each is None else varying(value, axes) for value, each in zip(values, found, strict=True)]


def varying(x: Any, axes: Iterable[str]) -> Any:
    """``x``, varying over these axes besides those that it varies over."""
    missing = frozenset(axes) - jax.typeof(x).mat.varying
    return jax.lax.pcast(x, tuple(sorted(missing)), to="varying") if missing else x


def threefry2x32(key_data: jax.Array, hi: jax.Array, lo: jax.Array) -> list[jax.Array]:
    """jax's own Threefry-2x32 primitive on counters (hi, lo): two words each."""
    from jax.extend.core.primitives import threefry2x32_p

    return threefry2x32_p.bind(key_data[0], key_data[1], hi, lo)


def is_literal(atom: Any) -> bool:
    """Whether an operand of an equation is a constant, ``atom.val``, and no variable."""
    from jax.extend.core import Literal

    return isinstance(atom, Literal)


def scan_operands(eqn: JaxprEqn) -> tuple[int, int]:
    """How many constants and carries a scan equation has; its other operands are scanned. jax 0.11 and later keep them as a flat tree."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()
    return len(list(consts)), len(list(carry))


def open_jaxpr(program: Any) -> tuple[Jaxpr, Sequence[Any]]:
    """A jaxpr and its constants. Up to jax 0.10 a ``ClosedJaxpr`` holds the constants; later there is one class."""
    return (program.jaxpr, program.consts) if hasattr(program, "consts") else (program, ())


def without_dead_code(program: Any) -> tuple[Jaxpr, Sequence[Any]]:
    """The same program less what its outputs do not need, loop outputs included. jax offers this under ``jax.interpreters`` only."""
    jaxpr, consts = open_jaxpr(program)
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)[0], consts


def free_bytes(device: Any) -> int | None:
    """Memory of a device that is not in use; None where the backend does not say (CPU)."""
    stats = device.memory_stats() or {}
    return stats["bytes_limit"] - stats["bytes_in_use"] if "bytes_limit" in stats and "bytes_in_use" in stats else None


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a program could not be run, or compiled, because memory is short. jax has no exception of its own for it."""
    return "RESOURCE_EXHAUSTED" in str(error)


def detect_cluster(timeout_s: int) -> tuple[str | None, int | None, int | None, Any]:
    """(address of process 0, number of processes, which this is, its devices) by the environment of a cluster; None where it says nothing.

    ``jax.distributed.initialize()`` finds these out and keeps them to itself, and the processes need process 0's address for lines of their
    own (``peers``). jax has no public name for it.

    Raises:
        RuntimeError: this jax does not have it where 0.10 has it.
    """
    try:
        from jax._src.clusters import ClusterEnv
    except ImportError as error:
        raise RuntimeError(f"jax {jax.__version__} cannot be asked for the cluster; give an address") from error
    return ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, timeout_s)
