"""Runs every program and model of the tests against the dense oracle, in every kind of noise, and prints a markdown table.

    python scripts/lazy_coverage.py [NAME...]

Columns: uses = uses of parameters in one call; made whole = the primitives for which a matrix or more was made outside a dot, convolution
or gather; error = largest difference over the largest value of the dense result, worst of the kinds of noise, in float32 (bfloat16 for the
package's own decoder). NAMEs select cases whose name holds one of them. Needs the test extras (equinox, haiku).
"""

import argparse
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import jax
from lazy_cases import CASES, NOISES  # pyright: ignore[reportMissingImports]
from lazy_models import MODELS  # pyright: ignore[reportMissingImports]
from test_lazy_oracle import cast, relative_error  # pyright: ignore[reportMissingImports]

import perturbjax as pj

KINDS = [pj.Noise(), pj.Noise("rademacher"), pj.Noise("gaussian", 1), pj.Noise("rademacher", 1), *NOISES]


def row(name, fn, params, args, sigma):
    candidate = pj.Population(seed=11, size=3, sigmas=(sigma,))[2]
    worst = 0.0
    for noise in KINDS:
        theta = pj.lazy(params, candidate, noise)
        found = jax.jit(pj.lazily(fn))(theta, *args)
        worst = max(worst, relative_error(found, jax.jit(fn)(jax.jit(pj.perturb, static_argnums=2)(params, candidate, noise), *args)))
    report = pj.lazily(fn).report(pj.lazy(params, candidate, KINDS[0]), *args)
    print(f"| {name} | {len(report.uses)} | {', '.join(use.primitive for use in report.materialised)} | {worst:.0e} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    chosen = parser.parse_args().names or [""]
    if not any(part in name for part in chosen for name in [*CASES, *MODELS]):
        parser.error(f"no case's name holds {' or '.join(chosen)}")
    print(f"{len(KINDS)} kinds of noise, jax {jax.__version__}, {jax.devices()[0].device_kind}, {platform.machine()}\n")
    print("| case | uses | made whole | error |\n|---|---|---|---|")
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
