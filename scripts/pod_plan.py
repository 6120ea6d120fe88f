"""What a search would need on a pod, from compiling its programs for the pod on a machine that has none.

    python scripts/pod_plan.py scripts/configs/qwen2.5-7b.json --topology v5e:16x16 --mesh 64x4

Compiles scoring (a slot of packed rows) and generation (prompts and replies with a cache) with noise at the point of use, and prints what
the compiler says: bytes on each device, collectives, the largest batches that fit; and a roofline from stated assumptions. Nothing runs, so
nothing here is a measured speed. Needs libtpu: pip install 'perturbjax[tpu]'.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CONFIGS = Path(__file__).with_name("configs")


@dataclass(frozen=True)
class Chip:
    """Figures of one chip as its vendor states them: HBM bytes, dense bf16 FLOP/s, HBM bytes/s, and bytes/s of a ring over one axis of the
    torus, both directions together."""

    hbm: float
    flops: float
    bandwidth: float
    ring: float


CHIPS = {
    "v5e": Chip(16 * 2**30, 197e12, 819e9, 90e9),
    "v5p": Chip(95 * 2**30, 459e12, 2765e9, 180e9),
    "v6e": Chip(32 * 2**30, 918e12, 1640e9, 180e9),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=existing, help="config.json of a model")
    parser.add_argument(
        "--topology", type=like(rf"({'|'.join(CHIPS)}):\d+(x\d+)+"), default="v5e:16x16", help="e.g. v5e:16x16, v5p:4x4x4, v6e:8x8"
    )
    parser.add_argument("--mesh", type=like(r"[1-9]\d*x[1-9]\d*"), default="64x4", help="CANDIDATExMODEL")
    parser.add_argument("--noise", default="rademacher", choices=("gaussian", "rademacher"))
    parser.add_argument("--strategy", default="lazy", choices=("lazy", "copy"))
    parser.add_argument("--chunk", default=100, type=at_least_one, help="candidates of a group in one call of the program")
    parser.add_argument("--slot", type=like(r"[1-9]\d*x[1-9]\d*"), default="8x512", help="ROWSxTOKENS of one scoring pass")
    parser.add_argument("--slots", default=8, type=at_least_one, help="passes that score one candidate")
    parser.add_argument("--replies", type=like(r"[1-9]\d*x[1-9]\d*\+[1-9]\d*"), default="64x512+512", help="ROWSxPROMPT+NEW of generation")
    parser.add_argument("--program", default="both", choices=("both", "scoring", "generation"))
    parser.add_argument(
        "--no-search", action="store_true", help="leave out the search for the largest batches, which compiles several times"
    )
    options = parser.parse_args()
    chips, (candidates, model) = chips_of(options.topology), (int(n) for n in options.mesh.split("x"))
    if candidates * model != chips:
        parser.error(f"--mesh {options.mesh}: {candidates * model} devices, {options.topology} has {chips}")
    return options


def chips_of(topology: str) -> int:
    return math.prod(int(n) for n in topology.split(":")[1].split("x"))


def existing(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(
            f"{text}: no such file; there are {', '.join(sorted(p.name for p in CONFIGS.glob('*.json')))} in {CONFIGS.name}/"
        )
    return Path(text)


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: a number of at least 1 is required")
    return int(text)


def like(pattern: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"{text}: not of the form that --help shows")
        return text

    return check


class Plan:
    """The programs of one model on one mesh."""

    def __init__(self, options: argparse.Namespace):
        import jax
        import jax.numpy as jnp
        from jax.experimental import topologies

        from perturbjax import sharding
        from perturbjax.models.config import param_shapes
        from perturbjax.models.hf_config import decoder_config
        from perturbjax.models.params import nest
        from perturbjax.perturb import Noise

        self.options = options
        self.config = decoder_config(json.loads(options.config.read_text()), str(options.config))
        model = int(options.mesh.split("x")[1])
        devices = topologies.get_topology_desc(platform="tpu", topology_name=options.topology).devices
        self.mesh = sharding.make_mesh(devices, model)
        self.split = sharding.split_model(self.config, model)
        params = nest({path: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for path, shape in param_shapes(self.config).items()})
        self.spread = sharding.spread(params, self.mesh, self.split.cuts(self.config) if self.split else None)
        self.noise = Noise(options.noise)
        self.parameters = sum(math.prod(shape) for shape in param_shapes(self.config).values())

    def scoring(self, rows: int, tokens: int, in_flight: int = 1, capacity: int | None = None):
        """The compiled program that scores slots of packed rows, two choices of one token to a question."""
        import jax
        import numpy as np

        from perturbjax.scoring.forced import choice_values

        slots, queries, choices = self.options.slots, 64, 2
        shapes = dict.fromkeys(("tokens", "positions", "example", "branch"), (slots, rows, tokens))
        shapes |= {"query": (slots, queries), "ids": (slots, queries, choices), "count": ()}
        data = {name: jax.ShapeDtypeStruct(shape, np.int32) for name, shape in shapes.items()}
        data["lead"] = jax.ShapeDtypeStruct((min(128, tokens),), np.bool_)
        return self._compile(choice_values(self.config, single=False, split=self.split), data, in_flight, capacity)

    def generation(self, rows: int, prompt: int, new: int, in_flight: int = 1):
        """The compiled program that continues one slot of prompts greedily."""
        import jax
        import numpy as np

        from perturbjax.scoring.generative import generate_replies

        shapes = {
            "tokens": (1, rows, prompt),
            "lengths": (1, rows),
            "row_ids": (1, rows),
            "prefix": (1, 0),
            "prefix_length": (),
            "count": (),
        }
        data = {name: jax.ShapeDtypeStruct(shape, np.int32) for name, shape in shapes.items()}
        data |= {"live": jax.ShapeDtypeStruct((1, rows), np.bool_), "temperature": jax.ShapeDtypeStruct((), np.float32)}
        return self._compile(generate_replies(self.config, new, (1,), sample=False, split=self.split), data, in_flight, None)

    def _compile(self, fn, data, in_flight, capacity):
        from perturbjax.scoring import ChunkProgram

        capacity = capacity or self.mesh.shape["candidate"] * in_flight
        return ChunkProgram(fn, self.spread, self.noise, self.mesh, capacity, in_flight, self.options.strategy).lower(data).compile()

    def cache_bytes(self, rows: int, tokens: int) -> int:
        """Keys and values of every layer on one device, bf16."""
        local = self.split.local(self.config) if self.split else self.config
        return 2 * 2 * self.config.num_layers * local.num_kv_heads * self.config.head_dim * rows * tokens

    def flops(self, rows: int, tokens: int, logits: int) -> float:
        """Multiply-adds times two of ``rows`` sequences of ``tokens`` with logits at ``logits`` positions: matrices, attention (half of the
        square), head."""
        c, count = self.config, rows * tokens
        matrices = self.parameters - c.vocab_size * c.hidden_size * (1 if c.tied_head else 2)
        attention = 2 * 2 * c.num_layers * c.num_heads * c.head_dim * rows * tokens**2 / 2
        return 2 * matrices * count + attention + 2 * c.vocab_size * c.hidden_size * logits


def main() -> int:
    options = arguments()
    if importlib.util.find_spec("libtpu") is None:
        print("libtpu is not installed; run: pip install 'perturbjax[tpu]'", file=sys.stderr)
        return 2
    kind, chips = options.topology.split(":")[0], chips_of(options.topology)
    names = {"v5e": f"v5litepod-{chips}", "v5p": f"v5p-{2 * chips}", "v6e": f"v6e-{chips}"}
    # Without these a Python that has libtpu looks for a TPU and waits; and nothing is run, so several may compile at a time.
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    os.environ |= {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": names[kind]}
    from perturbjax.errors import InputError

    try:
        plan, chip = Plan(options), CHIPS[kind]
    except (InputError, ValueError) as error:  # a config that is none, a topology that does not exist
        print(f"{options.config}, {options.topology}: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2

    print(f"{options.config.stem}, {plan.parameters / 1e9:.2f} G parameters in bf16, noise {options.noise}, {options.strategy}")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu"))
    print(f"{options.topology}, {chips} chips, mesh candidate x model = {options.mesh}; compiled with {versions}")
    print(f"layout {plan.split or 'one device has all of it'}; weights {gib(plan.spread.device_bytes)} a device")
    if options.program != "generation":
        scoring(plan, chip)
    if options.program != "scoring":
        generation(plan, chip)
    return 0


def scoring(plan: Plan, chip: Chip) -> None:
    options = plan.options
    rows, tokens = (int(n) for n in options.slot.split("x"))
    print(f"\nSCORING, {options.slots} passes of {rows} rows of {tokens} tokens a candidate")
    groups = plan.mesh.shape["candidate"]
    chunk = groups * options.chunk
    compiled = plan.scoring(rows, tokens, capacity=chunk)
    memory(
        compiled, f"{chunk:,} candidates a call: N = 6,400 takes {-(-6400 // chunk)}, N = 640,000 takes {-(-640000 // chunk)} of the same"
    )
    memory(plan.scoring(rows, tokens), f"{groups:,} candidates a call, to compare")
    per_pass = collectives(plan, compiled)
    if not options.no_search:
        largest("rows of a pass", plan, chip, rows, lambda n: plan.scoring(n, tokens))
        largest("candidates in flight", plan, chip, 1, lambda n: plan.scoring(rows, tokens, in_flight=n))
    flops = options.slots * plan.flops(rows, tokens, 64)
    roofline(plan, chip, flops, options.slots, options.slots * per_pass, options.slots * plan.spread.device_bytes)


def generation(plan: Plan, chip: Chip) -> None:
    rows, rest = plan.options.replies.split("x")
    rows, (prompt, new) = int(rows), (int(n) for n in rest.split("+"))
    print(f"\nGENERATION, {rows} prompts of {prompt} tokens, {new} new tokens each")
    compiled = plan.generation(rows, prompt, new)
    memory(compiled, f"cache {gib(plan.cache_bytes(rows, prompt + new))}, part of the temporaries")
    collectives(plan, compiled)
    if not plan.options.no_search:
        largest("sequences", plan, chip, rows, lambda n: plan.generation(n, prompt, new))
        largest("candidates in flight", plan, chip, 1, lambda n: plan.generation(rows, prompt, new, in_flight=n))
    c = plan.config
    flops = plan.flops(rows, prompt + new, rows * new)
    # Bytes summed over "model": in every layer twice for every token.
    summed = 0 if plan.split is None else 2 * c.num_layers * c.hidden_size * 2 * rows * (prompt + new)
    read = (new + 1) * plan.spread.device_bytes + new * plan.cache_bytes(rows, prompt + new // 2)
    roofline(plan, chip, flops, new + 1, summed, read)


def gib(nbytes: float) -> str:
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**27 else f"{nbytes / 2**20:.2f} MiB"


def memory(compiled, what: str) -> None:
    m = compiled.memory_analysis()
    sizes = f"arguments {gib(m.argument_size_in_bytes)}, temporaries {gib(m.temp_size_in_bytes)}, results {gib(m.output_size_in_bytes)}"
    print(f"  {sizes} a device ({what})", flush=True)


def collectives(plan: Plan, compiled) -> float:
    """Prints them; returns the bytes that one pass sums over "model"."""
    from perturbjax.bench.collectives import read_collectives

    found = read_collectives(compiled.as_text(), plan.mesh.shape["model"])
    print("  collectives: kind, axis, where, bytes, how often in one turn of the loops around it")
    for one, count in sorted(Counter(found).items(), key=lambda item: -item[0].nbytes * item[0].times):
        where = f"inside {one.loops} loops" if one.loops else "once, at the end"
        print(f"    {one.kind:<14} {one.axis:<10} {where:<16} {gib(one.nbytes):>12} x {one.times * count}")
    inside = [one for one in found if one.loops and one.axis != "model"]
    weights = [one for one in found if one.kind == "all-gather" and one.axis == "model" and one.nbytes > 2**22]
    print(f'    on "candidate" inside the loop: {len(inside)}; all-gathers over "model" beyond 4 MiB (a weight would be): {len(weights)}')
    return sum(one.nbytes * one.times for one in found if one.axis == "model")


def fits(chip: Chip, compile_one, n: int) -> bool:
    import jax

    try:
        m = compile_one(n).memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error) or "hbm" in str(error).lower():
            return False
        raise
    return m.argument_size_in_bytes + m.temp_size_in_bytes + m.output_size_in_bytes <= chip.hbm


def largest(what: str, plan: Plan, chip: Chip, start: int, compile_one) -> None:
    """The largest of start, 2 start, 4 start ... that fits; up to 64 times start."""
    n = start
    while n <= 64 * start and fits(chip, compile_one, n):
        n *= 2
    found = f"{n // 2} fit, {n} do not" if n <= 64 * start else f"{n // 2} fit, more was not tried"
    print(f"  {what}: {found if n > start else f'{start} do not fit'} ({gib(chip.hbm)} a device)")


def roofline(plan: Plan, chip: Chip, flops: float, passes: int, summed: float, read: float) -> None:
    model = plan.mesh.shape["model"]
    times = {
        "FLOPs": flops / model / chip.flops,
        "HBM": read / chip.bandwidth,
        "ICI": 0 if model == 1 else 2 * (model - 1) / model * summed / chip.ring,
    }
    bound = max(times, key=lambda name: times[name])
    print(f"  {flops / 1e12:.2f} TFLOP a candidate; seconds on {model} chips: " + ", ".join(f"{name} {t:.3f}" for name, t in times.items()))
    print(f"  roofline {1 / times[bound] / model:.3f} candidates/s/chip, bound by {bound}")
    chip_figures = f"{chip.flops / 1e12:.0f} TFLOP/s bf16, {chip.bandwidth / 1e9:.0f} GB/s HBM, a ring of {chip.ring / 1e9:.0f} GB/s"
    print(f"  assumed: {chip_figures}; weights read once in each of {passes} passes;")
    print("  the three overlap fully, and noise and softmax are hidden under them", flush=True)


if __name__ == "__main__":
    sys.exit(main())
