"""Static cost of noise inside a matmul: VLIW bundles of the perturbed kernel against the plain one, compiled for a TPU that is not here.

Compiles ``perturbjax.kernels.tpu.matmul`` with the same tiles with and without noise, and counts the rows of the compiler's final schedule.
A bundle is one cycle when nothing stalls; what is counted is the whole kernel body, start and end of a sum included, one pass. The numbers
leave out waiting for memory and say nothing about wall time. They are the same on every machine.

    python scripts/tpu_static_cost.py [--target v5e] [--m 256,1024] [--noise rademacher,gaussian]

Columns: bundles; ratio to the plain kernel; ratio to the floor of the matrix units (a schedule of fewer bundles than that stalls, so the
ratio to plain takes the floor for both where it is larger); then how often each slot is used: matrix units (MXU),
vector arithmetic (VALU), loads, of them fills of spilled registers, stores, of them spills.
"""

import argparse
import importlib.util
import os
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
MULTIPLIERS = {"v5e": 4 * 128 * 128, "v5p": 4 * 128 * 128, "v6e": 2 * 256 * 256}
"""Multiply-accumulates per cycle of the matrix units of one core."""
NOISES = ("rademacher", "gaussian", "low-rank-1", "low-rank-4")
SLOTS = ("mxu", "xlu", "valu", "vpop", "eup", "vload", "fill", "vstore", "spill", "salu")
WEIGHT = 2048


def main() -> None:
    args = parse()
    if importlib.util.find_spec("libtpu") is None:
        print("libtpu is not installed: the TPU compiler is in it; install the extra, perturbjax[tpu]", file=sys.stderr)
        raise SystemExit(2)
    dump = Path(tempfile.mkdtemp(prefix="tpu_static_cost"))
    try:
        # Read when libtpu is loaded, so before jax is imported. Without JAX_PLATFORMS jax would look for a TPU and wait for it.
        os.environ.update(
            JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_ACCELERATOR_TYPE="v5litepod-4", TPU_WORKER_HOSTNAMES="localhost",
            LIBTPU_INIT_ARGS=f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true --xla_jf_emit_annotations=true",
        )  # fmt: skip
        table(args, dump)
    finally:
        shutil.rmtree(dump)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--target", choices=TOPOLOGIES, default="v5e")
    parser.add_argument("--m", dest="rows", default="128,256,512,1024,2048", help="rows of x for each candidate, separated by commas")
    parser.add_argument("--noise", default="rademacher,gaussian", help=f"of {', '.join(NOISES)}, separated by commas")
    parser.add_argument("--inner", type=int, default=512, help="tile of the weight: along the sum")
    parser.add_argument("--columns", type=int, default=512, help="tile of the weight: along the result")
    args = parser.parse_args()
    args.noise = args.noise.split(",")
    if unknown := set(args.noise) - set(NOISES):
        parser.error(f"--noise {sorted(unknown)[0]}: must be of {', '.join(NOISES)}")
    try:
        args.rows = [int(rows) for rows in args.rows.split(",")]
    except ValueError:
        parser.error(f"--m {args.rows}: must be numbers separated by commas")
    if min(args.rows) < 8 or any(rows % 8 for rows in args.rows):
        parser.error(f"--m {','.join(map(str, args.rows))}: must be multiples of 8")
    for name, size in (("--inner", args.inner), ("--columns", args.columns)):
        if size < 128 or size % 128 or WEIGHT % size:
            parser.error(f"{name} {size}: must be a multiple of 128 that divides {WEIGHT}")
    return args


def table(args: argparse.Namespace, dump: Path) -> None:
    import jax
    import libtpu  # pyright: ignore[reportMissingImports]

    print(f"target {args.target}, jax {jax.__version__}, libtpu {libtpu.__version__}; W {WEIGHT}x{WEIGHT} bfloat16, "
          f"tiles {args.inner}x{args.columns}, 2 candidates, one pass over the kernel body")  # fmt: skip
    print(f"{'M':>5} {'noise':<12} {'bundles':>8} {'/plain':>7} {'/floor':>7}" + "".join(f"{s:>8}" for s in SLOTS))
    for rows in args.rows:
        floor = rows * args.inner * args.columns / MULTIPLIERS[args.target]
        plain = None
        for noise in ("plain", *args.noise):
            used = count(args, rows, noise, dump)
            cycles = max(len(used), floor)
            plain = plain or cycles
            totals = "".join(f"{sum(row[slot] for row in used):>8}" for slot in range(len(SLOTS)))
            print(f"{rows:>5} {noise:<12} {len(used):>8} {cycles / plain:>7.3f} {len(used) / floor:>7.3f}{totals}", flush=True)


def count(args: argparse.Namespace, rows: int, noise: str, dump: Path) -> list[list[int]]:
    """Compiles one kernel; slots used by each bundle of its schedule."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from perturbjax.kernels import tpu  # pyright: ignore[reportMissingImports]
    from perturbjax.kernels.problem import Problem  # pyright: ignore[reportMissingImports]
    from perturbjax.kernels.tiling import Tiles  # pyright: ignore[reportMissingImports]

    for old in dump.iterdir():
        old.unlink()
    problem = Problem("gaussian", (1, WEIGHT, WEIGHT), None, False, True, None, jnp.dtype(jnp.bfloat16))
    if noise == "plain":
        problem = replace(problem, distribution=None)
    elif noise.startswith("low-rank-"):
        problem = replace(problem, rank=int(noise.rsplit("-", 1)[1]))
    else:
        problem = replace(problem, distribution=noise)
    tiles = Tiles(rows, args.inner, args.columns, 2)
    device = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[args.target]).devices[0]
    shapes = (
        ((2, rows, WEIGHT), jnp.bfloat16),
        ((1, WEIGHT, WEIGHT), jnp.bfloat16),
        ((), jnp.int32),
        ((3,), jnp.uint32),
        ((2, 2), jnp.uint32),
        ((2,), jnp.float32),
    )
    operands = [jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device)) for shape, dtype in shapes]

    def product(x: jax.Array, w: jax.Array, index: jax.Array, offsets: jax.Array, keys: jax.Array, steps: jax.Array) -> jax.Array:
        factors = () if problem.rank is None else problem.factors(keys, offsets, w.shape[1:])
        return tpu.matmul(problem, x, w, index, offsets, keys, steps, *factors, tiles=tiles)

    jax.jit(product).lower(*operands).compile()
    found = list(dump.glob("*perturbed_matmul*final_hlo-static-per-bundle-utilization.txt"))
    if len(found) != 1:
        raise RuntimeError(
            f"{len(found)} schedules of the kernel among {len(list(dump.iterdir()))} dumped files: this libtpu writes other names"
        )
    lines = found[0].read_text().partition("== UTILIZATION:")[2].splitlines()
    return [[int(slot) for slot in line.split()] for line in lines if line.strip()]


if __name__ == "__main__":
    main()
