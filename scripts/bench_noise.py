"""How fast noise is made on this CPU, as ratios to jax.random.normal in the same process.

    python scripts/bench_noise.py [--elements 4194304] [--rounds 15] [--warm 5]

Each round runs every variant once, in turn, so that a change of the machine's speed meets all of them; printed are medians. "+ p" rows add
sigma times the noise to a parameter, which is what a perturbed copy costs. Our rows are compiled with ``_compat.compiler_options``;
"wide" and "narrow" give jax.random.normal those too and take them from ours.
"""

import argparse
import statistics
import sys
import time

import jax
import jax.numpy as jnp
from inputs import at_least, exit_code

from perturbjax._compat import compiler_options
from perturbjax.noise import DISTRIBUTIONS, Block, Noise, perturb_block
from perturbjax.noise import values as noise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=at_least(2048), default=4 * 2**20)
    parser.add_argument("--rounds", type=at_least(1), default=15)
    parser.add_argument("--warm", type=at_least(0), default=5, help="untimed runs before each timed one")
    options = parser.parse_args()
    shape = (options.elements // 2048, 2048)
    key = noise.root_key_data(0)
    p = jnp.ones(shape)
    step = jnp.float32(1e-3)
    fast = compiler_options(jax.default_backend())

    def wrap(key):
        return jax.random.wrap_key_data(key, impl=noise.KEY_IMPL)

    def timed(make, options=None):
        # The output takes the place of the donated input: fresh 16 MiB buffers would time the operating system's page faults.
        return jax.jit(make, donate_argnums=0, keep_unused=True, compiler_options=options)

    variants = {
        "jax.random.normal": timed(lambda p, key: jax.random.normal(wrap(key), shape)),
        "normal, wide": timed(lambda p, key: jax.random.normal(wrap(key), shape), fast),
        "gaussian, narrow": timed(lambda p, key: noise.gaussian(key, Block(shape))),
    }
    for name, record in DISTRIBUTIONS.items():
        variants[name] = timed(lambda p, key, record=record: record.values(key, Block(shape)), fast)
        variants[f"{name} + p"] = timed(lambda p, key, name=name: perturb_block(p, key, step, Noise(name), Block(shape)), fast)
    variants["copy (p + 1)"] = timed(lambda p, key: p + 1)
    drawn = {name: jax.device_get(run(jnp.ones(shape), key)) for name, run in variants.items()}
    equal = bool((drawn["gaussian"] == drawn["jax.random.normal"]).all())
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(options.rounds):
        for name, run in variants.items():
            # What follows another variant pays for its place in the round, most of all after jax.random.normal: --warm 0 shows how much.
            for _ in range(options.warm):
                p = run(p, key).block_until_ready()
            started = time.perf_counter()
            p = run(p, key).block_until_ready()
            times[name].append(time.perf_counter() - started)
    device = jax.devices()[0].device_kind
    taken = f"median of {options.rounds} interleaved rounds, {options.warm} untimed runs before each"
    print(f"{device}, jax {jax.__version__}, float32 {shape}, {taken}")
    reference = times["jax.random.normal"]
    for name, seconds in times.items():
        ratio = statistics.median(r / s for r, s in zip(reference, seconds, strict=True))
        print(f"{name:18s} {p.size / statistics.median(seconds) / 1e6:9.0f} M values/s   {ratio:6.2f} x jax.random.normal")
    print(f"gaussian equals jax.random.normal bit for bit: {equal}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
