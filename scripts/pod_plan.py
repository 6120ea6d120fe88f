"""What a search would need on a pod, from compiling its programs for the pod on a machine that has none.

    python scripts/pod_plan.py scripts/configs/qwen2.5-7b.json --topology v5e:16x16 --mesh 64x4

Compiles scoring (a slot of packed rows) and generation (prompts and replies with a cache) with noise at the point of use, and prints what
the compiler says: bytes on each device, collectives, the largest batches that fit; and a roofline from stated assumptions. Nothing runs, so
nothing here is a measured speed. Needs libtpu: pip install 'perturbjax[tpu]'.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from inputs import at_least, exit_code

if TYPE_CHECKING:
    from perturbjax.bench.plan import Chip, Plan

CONFIGS = Path(__file__).with_name("configs")
NAMES = {"v5e": "v5litepod-{0}", "v5p": "v5p-{1}", "v6e": "v6e-{0}"}
"""What Cloud TPU calls a slice, by its number of chips and of cores."""
SMALL = 2**20
"""Collectives of fewer bytes are summed up in one line."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=existing, help="config.json of a model")
    parser.add_argument(
        "--topology", type=like(rf"({'|'.join(NAMES)}):\d+(x\d+)+"), default="v5e:16x16", help="e.g. v5e:16x16, v5p:4x4x4, v6e:8x8"
    )
    parser.add_argument("--mesh", type=like(r"[1-9]\d*x[1-9]\d*"), default="64x4", help="DATAxMODEL")
    parser.add_argument("--noise", default="rademacher", help="a distribution of perturbjax.noise")
    parser.add_argument("--strategy", default="lazy", choices=("lazy", "copy"))
    parser.add_argument("--chunk", default=100, type=at_least(1), help="candidates of a group in one call of the program")
    parser.add_argument("--slot", type=like(r"[1-9]\d*x[1-9]\d*"), default="8x512", help="ROWSxTOKENS of one scoring pass")
    parser.add_argument("--slots", default=8, type=at_least(1), help="passes that score one candidate")
    parser.add_argument("--replies", type=like(r"[1-9]\d*x[1-9]\d*\+[1-9]\d*"), default="64x512+512", help="ROWSxPROMPT+NEW of generation")
    parser.add_argument("--program", default="both", choices=("both", "scoring", "generation"))
    parser.add_argument(
        "--no-search", action="store_true", help="leave out the search for the largest batches, which compiles several times"
    )
    options = parser.parse_args()
    chips, (data, model) = chips_of(options.topology), (int(n) for n in options.mesh.split("x"))
    if data * model != chips:
        parser.error(f"--mesh {options.mesh}: {data * model} devices, {options.topology} has {chips}")
    return options


def chips_of(topology: str) -> int:
    return math.prod(int(n) for n in topology.split(":")[1].split("x"))


def existing(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(
            f"{text}: no such file; there are {', '.join(sorted(p.name for p in CONFIGS.glob('*.json')))} in {CONFIGS.name}/"
        )
    return Path(text)


def like(pattern: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"{text}: not of the form that --help shows")
        return text

    return check


def main() -> int:
    options = arguments()
    if importlib.util.find_spec("libtpu") is None:
        print("libtpu is not installed; run: pip install 'perturbjax[tpu]'", file=sys.stderr)
        return 2
    kind, chips = options.topology.split(":")[0], chips_of(options.topology)
    # Without these a Python that has libtpu looks for a TPU and waits; and nothing is run, so several may compile at a time.
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": NAMES[kind].format(chips, 2 * chips)}
    from jax.experimental import topologies

    from perturbjax.bench.plan import CHIPS, Plan
    from perturbjax.errors import InputError
    from perturbjax.noise import Noise
    from perturbjax.pretrained.hf_config import decoder_config

    try:
        config = decoder_config(json.loads(options.config.read_text()))
        devices = topologies.get_topology_desc(platform="tpu", topology_name=options.topology).devices
        plan = Plan(config, devices, int(options.mesh.split("x")[1]), Noise(options.noise), options.strategy)
    except (InputError, ValueError) as error:  # a config that is none, a topology that does not exist
        raise InputError(f"{options.config}, {options.topology}: {str(error).splitlines()[0]}") from error

    print(f"{options.config.stem}, {plan.parameters / 1e9:.2f} G parameters in bf16, noise {options.noise}, {options.strategy}")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu"))
    print(f"{options.topology}, {chips} chips, mesh data x model = {options.mesh}; compiled with {versions}")
    print(f"layout {plan.parallel or 'one device has all of it'}; weights {size(plan.params.device_bytes)} a device")
    if options.program != "generation":
        scoring(plan, CHIPS[kind], options)
    if options.program != "scoring":
        generation(plan, CHIPS[kind], options)
    return 0


def scoring(plan: Plan, chip: Chip, options: argparse.Namespace) -> None:
    from perturbjax.bench.plan import QUERIES

    rows, tokens = (int(n) for n in options.slot.split("x"))
    print(f"\nSCORING, {options.slots} passes of {rows} rows of {tokens} tokens a candidate")
    groups = plan.mesh.shape["data"]
    chunk = groups * options.chunk
    compiled = plan.scoring(options.slots, rows, tokens, max_candidates=chunk)
    calls = f"N = 6,400 takes {-(-6400 // chunk)}, N = 640,000 takes {-(-640000 // chunk)} of the same"
    memory(compiled, f"{chunk:,} candidates a call: {calls}")
    memory(plan.scoring(options.slots, rows, tokens), f"{groups:,} candidates a call, to compare")
    per_pass = collectives(plan, compiled)
    if not options.no_search:
        fit("rows of a pass", chip, rows, lambda n: plan.scoring(options.slots, n, tokens))
        fit("candidates in flight", chip, 1, lambda n: plan.scoring(options.slots, rows, tokens, in_flight=n))
    flops = options.slots * plan.flops(rows, tokens, QUERIES)
    roofline(plan, chip, flops, options.slots, options.slots * per_pass, options.slots * plan.params.device_bytes)


def generation(plan: Plan, chip: Chip, options: argparse.Namespace) -> None:
    rows, rest = options.replies.split("x")
    rows, (prompt, new) = int(rows), (int(n) for n in rest.split("+"))
    print(f"\nGENERATION, {rows} prompts of {prompt} tokens, {new} new tokens each")
    compiled = plan.generation(rows, prompt, new)
    memory(compiled, f"cache {size(plan.cache_bytes(rows, prompt + new))}, part of the temporaries")
    collectives(plan, compiled)
    if not options.no_search:
        fit("sequences", chip, rows, lambda n: plan.generation(n, prompt, new))
        fit("candidates in flight", chip, 1, lambda n: plan.generation(rows, prompt, new, in_flight=n))
    c = plan.config
    flops = plan.flops(rows, prompt + new, rows * new)
    # In every layer twice for every token.
    summed = 2 * c.num_layers * c.hidden_size * 2 * rows * (prompt + new)
    read = (new + 1) * plan.params.device_bytes + new * plan.cache_bytes(rows, prompt + new // 2)
    roofline(plan, chip, flops, new + 1, summed, read)


def size(nbytes: float) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.2f} {name}"
    return f"{nbytes:.0f} B"


def memory(compiled, what: str) -> None:
    m = compiled.memory_analysis()
    sizes = f"arguments {size(m.argument_size_in_bytes)}, temporaries {size(m.temp_size_in_bytes)}, results {size(m.output_size_in_bytes)}"
    print(f"  {sizes} a device ({what})", flush=True)


def collectives(plan: Plan, compiled) -> float:
    """Prints them; returns the bytes that one pass sums over "model"."""
    from perturbjax.bench.collectives import read_collectives

    found = read_collectives(compiled.as_text(), plan.mesh.shape["model"])
    lines: dict[tuple, list[int]] = defaultdict(lambda: [0, 0])
    for one in found:
        where = f"inside {one.loops} loops" if one.loops else "once, at the end"
        line = lines[one.kind, one.axis, where if one.nbytes >= SMALL else "", one.nbytes if one.nbytes >= SMALL else 0]
        line[0] += one.times
        line[1] += one.nbytes * one.times
    print("  collectives: kind, axis, where, how many of what size in one turn of the loops around them")
    for (kind, axis, where, nbytes), (times, total) in sorted(lines.items(), key=lambda line: -line[1][1]):
        each = f"{times} x {size(nbytes)}" if where else f"{times} of less than {size(SMALL)}, {size(total)} together"
        print(f"    {kind:<14} {axis:<10} {where:<16} {each}")
    inside = [one for one in found if one.loops and one.axis != "model"]
    weights = [one for one in found if one.kind == "all-gather" and one.axis == "model" and one.nbytes > 2**22]
    print(f'    on "data" inside the loop: {len(inside)}; all-gathers over "model" beyond 4 MiB (a weight would be): {len(weights)}')
    return sum(one.nbytes * one.times for one in found if one.axis == "model")


def fit(what: str, chip: Chip, start: int, compiled: Callable[[int], object]) -> None:
    from perturbjax.bench.plan import largest

    found = largest(chip, start, compiled)
    then = f"fit, {2 * found} do not" if found else "do not fit"
    print(f"  {what}: {found or start} {then} ({size(chip.hbm)} a device)", flush=True)


def roofline(plan: Plan, chip: Chip, flops: float, passes: int, summed: float, read: float) -> None:
    model, times = plan.mesh.shape["model"], plan.roofline(chip, flops, summed, read)
    bound = max(times, key=lambda name: times[name])
    print(f"  {flops / 1e12:.2f} TFLOP a candidate; seconds on {model} chips: " + ", ".join(f"{name} {t:.3f}" for name, t in times.items()))
    print(f"  roofline {1 / times[bound] / model:.3f} candidates/s/chip, bound by {bound}")
    chip_figures = f"{chip.flops / 1e12:.0f} TFLOP/s bf16, {chip.bandwidth / 1e9:.0f} GB/s HBM, a ring of {chip.ring / 1e9:.0f} GB/s"
    print(f"  assumed: {chip_figures}; weights read once in each of {passes} passes;")
    print("  the three overlap fully, and noise and softmax are hidden under them", flush=True)


if __name__ == "__main__":
    sys.exit(exit_code(main))
