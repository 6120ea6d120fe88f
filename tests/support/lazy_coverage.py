"""Runs every program and model of the tests against the dense oracle, in every kind of noise, and prints a markdown table.

    PYTHONPATH=tests python tests/support/lazy_coverage.py [NAME...]

Columns: uses = uses of parameters in one call; materialized = the primitives for which a matrix or more was made outside a dot, convolution
or gather; error = largest difference over the largest value of the dense result, worst of the kinds of noise, in float32 (bfloat16 for the
package's own decoder). NAMEs select cases whose name holds one of them. Needs the test extras (equinox, haiku).
"""

import argparse
import platform

import jax

import perturbjax as pj
from perturbjax.noise import DISTRIBUTIONS
from support.lazy_cases import CASES, NOISES
from support.lazy_models import MODELS
from support.oracle import cast, relative_error

KINDS = [*(pj.Noise(name, rank) for rank in (None, 1) for name in DISTRIBUTIONS), *NOISES]


def row(name, fn, params, args, sigma):
    candidate = pj.Population(seed=11, size=3, sigmas=(sigma,))[2]
    worst = 0.0
    for noise in KINDS:
        theta = pj.lazy(params, candidate, noise)
        found = jax.jit(pj.lazily(fn))(theta, *args)
        worst = max(worst, relative_error(found, jax.jit(fn)(jax.jit(pj.perturb, static_argnums=2)(params, candidate, noise), *args)))
    usage = pj.lazily(fn).usage(pj.lazy(params, candidate, KINDS[0]), *args)
    print(f"| {name} | {len(usage.uses)} | {', '.join(use.primitive for use in usage.materialized)} | {worst:.0e} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    chosen = parser.parse_args().names or [""]
    if not any(part in name for part in chosen for name in [*CASES, *MODELS]):
        parser.error(f"no case's name holds {' or '.join(chosen)}")
    print(f"{len(KINDS)} kinds of noise, jax {jax.__version__}, {jax.devices()[0].device_kind}, {platform.machine()}\n")
    print("| case | uses | materialized | error |\n|---|---|---|---|")
    for name, case in CASES.items():
        if any(part in name for part in chosen):
            params, args = cast((case.params, case.args), "float32")
            row(name, case.fn, params, args, 0.1)
    for name, build in MODELS.items():
        if any(part in name for part in chosen):
            fn, params, x = build()
            row(name, fn, params, (x,), 0.02)


if __name__ == "__main__":
    main()
