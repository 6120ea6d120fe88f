"""Compiles whole decoders for chips that this machine does not have, and prints what the programs hold as JSON.

    PYTHONPATH=tests python tests/support/lazy_kernels_compile.py tpu     # or cuda

As ``kernels_compile``, and in its own process for the same reasons.
"""

import json
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import perturbjax as pj
from perturbjax import sharding
from perturbjax.bench.hlo import read_computations
from perturbjax.inference.programs import choice_values, generate_replies
from perturbjax.models.config import DecoderConfig, param_shapes
from perturbjax.models.partition import TensorParallel, partition
from perturbjax.noise import Noise
from perturbjax.scoring import ChunkProgram
from perturbjax.tree import nest
from support.kernels_compile import KERNEL_CALLS, TPUS, targets

CONFIG = DecoderConfig(
    architecture="qwen2", vocab_size=40960, hidden_size=512, intermediate_size=1280, num_layers=6, num_heads=4, num_kv_heads=2,
    head_dim=128, rope_theta=1e6, norm_eps=1e-6, tied_head=True, qkv_bias=True,
)  # fmt: skip
ROWS, TOKENS = 4, 96
# name: devices of "model" where there are as many, noise, candidates in flight.
CASES = {
    "scoring": (1, Noise("rademacher"), 2),
    "scoring of sharded matrices with gaussian noise": (2, Noise(), 1),
    "scoring with low-rank noise": (1, Noise(rank=1), 2),
    "replies": (1, Noise("rademacher"), 4),
    "copy": (1, Noise("rademacher"), 1),
}
PREFETCH = {"copy-start", "copy-done", "slice-start", "slice-done"}
PASSED_ON = {"parameter", "get-tuple-element", "tuple", "while", "conditional", "bitcast", *PREFETCH}
"""Operations that make no array, or bring part of one that exists into VMEM."""
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?[\w.\-]+ = (?P<type>.*?) (?P<op>[\w\-]+)\((?P<operands>[^)]*)\)")
_FLOATS = re.compile(r"\b(?:bf16|f16|f32)\[([\d,]+)\]")


def devices_of(platform: str) -> list[Any]:
    if platform == "tpu":
        return topologies.get_topology_desc(platform="tpu", topology_name=TPUS["v5e"]).devices
    return [targets(platform)["h100"]]


def program(case: str, devices: list[Any]) -> tuple[Any, Any]:
    """The compiled program, and the configuration of one device."""
    model, noise, in_flight = CASES[case]
    model = min(model, len(devices))
    mesh, parallel = sharding.make_mesh(devices, model), partition(CONFIG, model)
    params = nest({path: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for path, shape in param_shapes(CONFIG).items()})
    sharded = sharding.shard_params(params, mesh, parallel.dims(CONFIG) if parallel else None)
    fn, shapes = generation(parallel) if case.startswith("replies") else scoring(parallel)
    data = {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in shapes.items()}
    max_candidates, strategy = mesh.shape[sharding.DATA] * in_flight, "copy" if case == "copy" else "lazy"
    compiled = ChunkProgram(fn, sharded, noise, mesh, max_candidates, in_flight, strategy).lower(data).compile()
    return compiled, parallel.local(CONFIG) if parallel else CONFIG


def scoring(parallel: TensorParallel | None) -> tuple[Any, dict[str, Any]]:
    slots, queries = 2, 16
    shapes: dict[str, Any] = dict.fromkeys(("tokens", "positions", "example", "branch"), ((slots, ROWS, TOKENS), np.int32))
    shapes |= {"query": ((slots, queries), np.int32), "ids": ((slots, queries, 2), np.int32), "num_valid": ((), np.int32)}
    return choice_values(CONFIG, single=False, parallel=parallel), shapes | {"lead": ((16,), np.bool_)}


def generation(parallel: TensorParallel | None) -> tuple[Any, dict[str, Any]]:
    """One row a candidate, so that there is one loop over tokens."""
    shapes: dict[str, Any] = dict.fromkeys(("lengths", "row_ids"), ((1, 1), np.int32))
    shapes |= {"tokens": ((1, 1, TOKENS), np.int32), "prefix": ((1, 0), np.int32)}
    shapes |= dict.fromkeys(("prefix_length", "num_valid"), ((), np.int32))
    shapes |= {"valid": ((1, 1), np.bool_), "temperature": ((), np.float32)}
    return generate_replies(CONFIG, 16, (1,), sample=False, parallel=parallel), shapes


def found_in(compiled: Any, local: DecoderConfig, in_flight: int, kernel_call: str) -> dict[str, Any]:
    text = compiled.as_text()
    shapes = [shape for path, shape in param_shapes(local).items() if path.endswith(("kernel", "embedding"))]
    sides = {tuple(sorted(shape[-2:])) for shape in shapes}
    computations, _ = read_computations(text)
    fused = set(re.findall(r"\b(?:calls|to_apply)=%?([\w.\-]+)", text))
    types, matrices, weights, kernels = {}, [], [], 0
    for lines in (lines for name, lines in computations.items() if name not in fused):
        for line in lines:
            if (instruction := _INSTRUCTION.match(line)) is None:
                continue
            name = line.split(" = ")[0].removeprefix("  ROOT ").strip()
            types[name] = instruction["type"]
            arrays = [tuple(int(n) for n in dims.split(",")) for dims in _FLOATS.findall(instruction["type"])]
            if instruction["op"] not in PASSED_ON and 'custom_call_target="ConcatBitcast"' not in line:
                matrices += [f"{name} {shape}" for shape in arrays if tuple(sorted(shape[-2:])) in sides]
            if kernel_call in line:
                kernels += 1
                operands = (_FLOATS.search(types[operand]) for operand in re.findall(r"%[\w.\-]+", instruction["operands"]))
                dims = (tuple(int(n) for n in array[1].split(",")) for array in operands if array)
                weights += [list(shape) for shape in dims if tuple(sorted(shape[-2:])) in sides]
    layer = max(2 * shape[-2] * shape[-1] for shape in shapes if len(shape) == 3)
    return {
        "kernels": kernels,
        "matrices": matrices,
        "weights": sorted(weights),
        "every_weight": [list(shape) if len(shape) == 3 else [1, *shape] for shape in shapes],
        "temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
        # The largest matrix of a layer in bfloat16, and for each candidate in flight what a layer makes of its tokens.
        "bound": layer + in_flight * ROWS * TOKENS * 2 * (2 * local.intermediate_size + 4 * local.hidden_size),
    }


def checked_shards(devices: list[Any]) -> int:
    """Kernel calls in a function of a user that shards a matrix itself, by columns, with the checks of ``shard_map`` on."""
    mesh = sharding.make_mesh(devices, 2)
    product = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(P(), P(None, "model")), out_specs=P(None, "model"))

    def fn(w: jax.Array, x: jax.Array, candidate: pj.Candidate) -> jax.Array:
        return pj.lazily(lambda params, x: product(x, params["w"]))(pj.lazy({"w": w}, candidate, Noise()), x)

    arguments = ((128, 512), jnp.bfloat16), ((8, 128), jnp.bfloat16)
    w, x = (jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P())) for shape, dtype in arguments)
    candidate = jax.eval_shape(lambda: pj.Candidate.base(1))
    candidate = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype, sharding=NamedSharding(mesh, P())), candidate)
    compiled: Any = jax.jit(fn).lower(w, x, candidate).compile()
    return compiled.as_text().count(KERNEL_CALLS["tpu"])


def main() -> None:
    platform = sys.argv[1]
    devices = devices_of(platform)
    found: dict[str, Any] = {case: found_in(*program(case, devices), CASES[case][2], KERNEL_CALLS[platform]) for case in CASES}
    shards = checked_shards(devices) if len(devices) > 1 else None
    json.dump({"decoders": found, "checked_shards": shards}, sys.stdout)


if __name__ == "__main__":
    main()
