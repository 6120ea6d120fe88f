"""The perturbed product on the GPU at hand: is it right, and how fast is it beside a plain product?

    python scripts/gpu_kernels.py [--rows 16,64,256,1024,4096] [--noise gaussian,rademacher,low-rank-1] [--sweep] [--out FILE]

First every noise, dtype and layout against float64, and the noise of a tile against the specification. Then times: C candidates with M
rows of x each and one weight W of SIDE x SIDE in bfloat16. *plain* is x W without noise, all candidates in one product; *whole* is what
XLA makes of the noise and the perturbed weight in memory, then a product; *kernel* is ``perturbed_matmul``. Variants take turns, round by
round, in one process; medians, in microseconds, and as a share of plain's speed. ``--sweep`` tries several tile sizes for each.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from inputs import at_least, exit_code

from perturbjax.errors import InputError
from perturbjax.kernels import gpu, reference
from perturbjax.kernels.matmul import perturbed_matmul
from perturbjax.kernels.problem import Problem
from perturbjax.noise import DISTRIBUTIONS, Block
from perturbjax.noise.low_rank import low_rank
from perturbjax.noise.values import fold_in, root_key_data

NOISES = {**{name: (name, None) for name in DISTRIBUTIONS}, "low-rank-1": ("gaussian", 1), "low-rank-4": ("gaussian", 4)}
SWEEP = [(32, 64, 4, 2), (32, 64, 8, 3), (32, 64, 16, 2), (32, 128, 4, 3), (64, 128, 8, 3)]
"""The other sizes of ``gpu.Launch`` that ``--sweep`` tries."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="16,64,256,1024,4096", help="rows of x of each candidate, comma separated")
    parser.add_argument("--noise", default="gaussian,rademacher,low-rank-1", help=f"of {', '.join(NOISES)}")
    parser.add_argument("--side", type=at_least(128), default=2048)
    parser.add_argument("--candidates", type=at_least(1), default=8)
    parser.add_argument("--rounds", type=at_least(1), default=7)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--out", type=Path, help="a JSON file of all times")
    options = parser.parse_args()
    if jax.default_backend() != "gpu":
        raise InputError(f"a GPU is required; jax runs on {jax.default_backend()}")
    try:
        rows = [int(part) for part in options.rows.split(",")]
    except ValueError:
        rows = [0]
    noises = options.noise.split(",")
    if min(rows) < 1 or not set(noises) <= set(NOISES):
        raise InputError(f"--rows {options.rows} --noise {options.noise}: positive integers, and names of {', '.join(NOISES)} are required")
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}", flush=True)
    check()
    measured = [row for noise, count in product(noises, rows) for row in times(options, noise, count)]
    if options.out:
        options.out.write_text(json.dumps(measured, indent=1))


def keys_of(count: int) -> tuple[jax.Array, jax.Array]:
    """Keys (count, 2) and steps (count,) of as many candidates."""
    keys = jax.vmap(lambda i: fold_in(root_key_data(7), i))(jnp.arange(count, dtype=jnp.uint32))
    return keys, jnp.where(jnp.arange(count) % 2 == 0, 1e-2, -1e-2).astype(jnp.float32)


def check() -> None:
    """Prints the largest relative errors, and exits with 1 where one is larger than rounding."""
    shape, keys, wrong = (300, 200), keys_of(3), []
    for name, (distribution, rank) in NOISES.items():
        block = Block(shape)
        key = keys[0][0]
        e = low_rank(key, block, rank, distribution) if rank else DISTRIBUTIONS[distribution].values(key, block)
        e = np.asarray(e, np.float64).reshape(shape)
        own = partial(perturbed_matmul, shape=shape, distribution=distribution, rank=rank, lowering="gpu")
        exact = partial(own, precision="highest")
        made = np.asarray(jax.jit(exact)(jnp.eye(300), jnp.zeros(shape), key, jnp.float32(1)), np.float64)
        errors = {"noise": float(np.max(np.abs(made - e)) / np.max(np.abs(e)))}
        limits = {"noise": 1e-5}
        for dtype, transposed in product((jnp.float32, jnp.bfloat16), (False, True)):
            w = jax.random.normal(jax.random.key(1), shape, dtype)
            x = jax.random.normal(jax.random.key(2), (70, shape[1 if transposed else 0]), dtype)
            run = exact if dtype == jnp.float32 else own
            got = jax.jit(partial(run, transposed=transposed))(x, w, key, keys[1][0])
            moved = np.asarray((np.asarray(w, np.float64) + float(keys[1][0]) * e), np.float32).astype(jnp.dtype(dtype)).astype(np.float64)
            want = np.asarray(x, np.float64) @ (moved.T if transposed else moved)
            label = f"{jnp.dtype(dtype).name}{' transposed' if transposed else ''}"
            errors[label] = float(np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want))
            # bfloat16: of the rounding of the result.
            limits[label] = 1e-6 if dtype == jnp.float32 else 4e-3
        print(f"{name:12s}" + "  ".join(f"{label} {error:.1e}" for label, error in errors.items()), flush=True)
        wrong += [f"{name} {label}" for label, error in errors.items() if not error <= limits[label]]
    if wrong:
        print(f"beyond rounding: {', '.join(wrong)}")
        raise SystemExit(1)


def times(options: argparse.Namespace, noise: str, rows: int) -> list[dict[str, object]]:
    """Measures one noise with ``rows`` rows of x a candidate, and prints a line for each variant."""
    distribution, rank = NOISES[noise]
    shape = (options.side, options.side)
    problem = Problem(distribution, (1, *shape), rank, False, True, None, jnp.dtype(jnp.bfloat16))
    keys, steps = keys_of(options.candidates)
    offsets = jnp.zeros(3, jnp.uint32)
    x = jax.random.normal(jax.random.key(0), (options.candidates, rows, options.side), jnp.bfloat16)
    w = jax.random.normal(jax.random.key(1), (1, *shape), jnp.bfloat16)
    factors = problem.factors(keys, offsets, shape) if rank else ()
    default = gpu.launch_for(rows, rank, DISTRIBUTIONS[distribution].rows_per_word)
    tried = [gpu.Launch(default.rows, *sizes) for sizes in SWEEP]

    def kernel(launch: gpu.Launch) -> Callable[..., jax.Array]:
        return lambda x, w, *own: gpu.matmul(problem, x, w, jnp.int32(0), offsets, *own, launch=launch)

    launches: dict[gpu.Launch, None] = dict.fromkeys([default, *(tried if options.sweep else [])])
    variants: dict[str, Callable[..., jax.Array]] = {
        "plain": lambda x, w, *_: jax.lax.dot(x.reshape(-1, options.side), w[0]),
        "whole": lambda x, w, *own: reference.matmul(problem, x, w, jnp.int32(0), offsets, *own),
        **{"kernel " + "x".join(map(str, launch)): kernel(launch) for launch in launches},
    }
    operands = (x, w, keys, steps, *factors)

    def compiled(name: str) -> object:
        try:
            return jax.jit(variants[name]).lower(*operands).compile()
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:80]}"

    with ThreadPoolExecutor(8) as pool:
        programs = dict(zip(variants, pool.map(compiled, variants), strict=True))
    taken: dict[str, list[float]] = {name: [] for name, program in programs.items() if callable(program)}
    calls = dict.fromkeys(taken, 1)
    for name in taken:
        one = timed(programs[name], operands, 3)
        calls[name] = max(3, min(400, round(0.01 / one)))
    for _ in range(options.rounds):
        for name in taken:
            taken[name].append(timed(programs[name], operands, calls[name]))
    plain = statistics.median(taken["plain"])
    print(f"\n{noise}, {options.candidates} candidates, {rows} rows each, W {options.side} x {options.side}", flush=True)
    found = []
    for name, program in programs.items():
        if name not in taken:
            print(f"  {name:26s} {program}")
            continue
        seconds = statistics.median(taken[name])
        rate = 2 * options.candidates * rows * options.side**2 / seconds / 1e12
        print(f"  {name:26s}{seconds * 1e6:10.1f} us  {plain / seconds:6.3f} of plain  {rate:6.1f} TFLOP/s", flush=True)
        found.append({"noise": noise, "rows": rows, "variant": name, "seconds": seconds, "rounds": taken[name]})
    return found


def timed(program: object, operands: tuple[jax.Array, ...], calls: int) -> float:
    """Seconds of one call, of ``calls`` in a row."""
    assert callable(program)
    started = time.perf_counter()
    for _ in range(calls):
        last = program(*operands)
    jax.block_until_ready(last)
    return (time.perf_counter() - started) / calls


if __name__ == "__main__":
    sys.exit(exit_code(main))
