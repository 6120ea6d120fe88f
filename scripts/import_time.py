"""CPU time of ``import perturbjax`` beside that of ``import jax``: fresh processes that take turns, so that a busy machine slows both.

    .venv/bin/python scripts/import_time.py --rounds 20

Prints the median of each and the ratio.
"""

import argparse
import os
import statistics
import subprocess
import sys

MODULES = ("jax", "perturbjax")


def seconds(module: str) -> float:
    """CPU seconds of one import in a process of its own, started Python not counted."""
    code = f"import time; start = time.process_time(); import {module}; print(time.process_time() - start)"
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # with bytecode, as users have it
    return float(subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="imports of each")
    options = parser.parse_args()
    for module in MODULES:  # not counted: it may write bytecode, and fills the cache of files
        seconds(module)
    taken = {module: [] for module in MODULES}
    for _ in range(options.rounds):
        for module in MODULES:
            taken[module].append(seconds(module))
    medians = {module: statistics.median(times) for module, times in taken.items()}
    for module, median in medians.items():
        print(f"import {module}: {1000 * median:.0f} ms of CPU, median of {options.rounds}, from {1000 * min(taken[module]):.0f} ms")
    print(f"ratio {medians['perturbjax'] / medians['jax']:.2f}")


if __name__ == "__main__":
    main()
