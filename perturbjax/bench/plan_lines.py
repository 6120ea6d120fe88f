"""What the compiler says about the programs of a plan, line by line: bytes on each device, collectives, what fits, and a roofline."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from perturbjax.bench.collectives import Collective, read_collectives
from perturbjax.bench.plan import QUERIES, Chip, Plan, largest
from perturbjax.sharding import DATA, MODEL

Say = Callable[[str], None]
SMALL = 2**20
"""Collectives of fewer bytes are summed up in one line."""
WEIGHT = 2**22
"""An all-gather of more bytes than these may be one of a weight."""


def scoring_lines(plan: Plan, chip: Chip, rows: int, tokens: int, slots: int, chunk: int, search: bool, say: Say) -> None:
    """Of the program that scores ``slots`` passes of packed rows a candidate, ``chunk`` candidates of a group in one call."""
    say(f"\nSCORING, {slots} passes of {rows} rows of {tokens} tokens a candidate")
    groups = plan.mesh.shape[DATA]
    candidates = groups * chunk
    compiled = plan.scoring(slots, rows, tokens, max_candidates=candidates)
    calls = f"N = 6,400 takes {-(-6400 // candidates)}, N = 640,000 takes {-(-640000 // candidates)} of the same"
    say(memory_line(compiled, f"{candidates:,} candidates a call: {calls}"))
    say(memory_line(plan.scoring(slots, rows, tokens), f"{groups:,} candidates a call, to compare"))
    per_pass = _summed(collective_lines(plan, compiled, say))
    if search:
        say(_fit("rows of a pass", chip, rows, lambda n: plan.scoring(slots, n, tokens)))
        say(_fit("candidates in flight", chip, 1, lambda n: plan.scoring(slots, rows, tokens, in_flight=n)))
    times = plan.roofline(chip, slots * plan.flops(rows, tokens, QUERIES), slots * per_pass, slots * plan.params.device_bytes)
    _roofline(plan, chip, times, slots, say)


def generation_lines(plan: Plan, chip: Chip, rows: int, prompt: int, new: int, search: bool, say: Say) -> None:
    """Of the program that continues ``rows`` prompts greedily."""
    say(f"\nGENERATION, {rows} prompts of {prompt} tokens, {new} new tokens each")
    compiled = plan.generation(rows, prompt, new)
    say(memory_line(compiled, f"cache {size(plan.cache_bytes(rows, prompt + new))}, part of the temporaries"))
    collective_lines(plan, compiled, say)
    if search:
        say(_fit("sequences", chip, rows, lambda n: plan.generation(n, prompt, new)))
        if plan.noise is not None:
            say(_fit("candidates in flight", chip, 1, lambda n: plan.generation(rows, prompt, new, in_flight=n)))
    # In every layer twice for every token.
    summed = sum(2 * part.num_layers * part.hidden_size * 2 * rows * (prompt + new) for part in plan.parts.values())
    read = (new + 1) * plan.params.device_bytes + new * plan.cache_bytes(rows, prompt + new // 2)
    _roofline(plan, chip, plan.roofline(chip, plan.flops(rows, prompt + new, rows * new), summed, read), new + 1, say)


def training_lines(plan: Plan, chip: Chip, rows: int, tokens: int, search: bool, say: Say) -> None:
    """Of the optimizer step on ``rows`` packed rows on each group of devices along "model", half of whose tokens are learned."""
    groups = plan.mesh.shape[DATA]
    what = "the value network beside the frozen base" if plan.value else "all parameters"
    say(f"\nTRAINING of {what}, {groups * rows} rows of {tokens} tokens a step, half of them learned; layers computed again")
    compiled = plan.training(groups * rows, tokens, tokens // 2)
    say(memory_line(compiled, "weights, AdamW's moments and gradients in float32, a frozen base in bfloat16"))
    found = collective_lines(plan, compiled, say)
    if search:
        say(_fit("rows of a group", chip, rows, lambda n: plan.training(groups * n, tokens, tokens // 2)))
    flops = plan.training_flops(rows, tokens, rows * tokens // 2)
    seconds = {"FLOPs": flops / plan.mesh.shape[MODEL] / chip.flops, "ICI": sum(one.nbytes * one.times for one in found) / chip.ring}
    bound = max(seconds, key=lambda name: seconds[name])
    say(f"  {flops / 1e12:.2f} TFLOP a group and step; seconds: " + ", ".join(f"{name} {value:.3f}" for name, value in seconds.items()))
    rate = rows * tokens / seconds[bound] / plan.mesh.shape[MODEL]
    say(f"  roofline {rate:,.0f} tokens/s/chip, bound by {bound}, every collective at the speed of one ring and none hidden")


def size(nbytes: float) -> str:
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.2f} {name}"
    return f"{nbytes:.0f} B"


def memory_line(compiled: Any, what: str) -> str:
    """Bytes of a program on one device."""
    m = compiled.memory_analysis()
    sizes = f"arguments {size(m.argument_size_in_bytes)}, temporaries {size(m.temp_size_in_bytes)}, results {size(m.output_size_in_bytes)}"
    return f"  {sizes} a device ({what})"


def collective_lines(plan: Plan, compiled: Any, say: Say) -> list[Collective]:
    """Says what collectives a program has, and returns them."""
    found = read_collectives(compiled.as_text(), plan.mesh.shape[MODEL])
    lines: dict[tuple[str, str, str, int], list[int]] = defaultdict(lambda: [0, 0])
    for one in found:
        where = f"inside {one.loops} loops" if one.loops else "once, at the end"
        line = lines[one.kind, one.axis, where if one.nbytes >= SMALL else "", one.nbytes if one.nbytes >= SMALL else 0]
        line[0] += one.times
        line[1] += one.nbytes * one.times
    say("  collectives: kind, axis, where, how many of what size in one turn of the loops around them")
    for (kind, axis, where, nbytes), (times, total) in sorted(lines.items(), key=lambda line: -line[1][1]):
        each = f"{times} x {size(nbytes)}" if where else f"{times} of less than {size(SMALL)}, {size(total)} together"
        say(f"    {kind:<14} {axis:<10} {where:<16} {each}")
    inside = [one for one in found if one.loops and one.axis != MODEL]
    weights = [one for one in found if one.kind == "all-gather" and one.axis == MODEL and one.nbytes > WEIGHT]
    say(f'    on "data" inside the loop: {len(inside)}; all-gathers over "model" beyond 4 MiB (a weight would be): {len(weights)}')
    return found


def _summed(found: list[Collective]) -> float:
    """Bytes that one pass sums over "model"."""
    return sum(one.nbytes * one.times for one in found if one.axis == MODEL)


def _fit(what: str, chip: Chip, start: int, compiled: Callable[[int], object]) -> str:
    found = largest(chip, start, compiled)
    then = f"fit, {2 * found} do not" if found else "do not fit"
    return f"  {what}: {found or start} {then} ({size(chip.hbm)} a device)"


def _roofline(plan: Plan, chip: Chip, times: dict[str, float], passes: int, say: Say) -> None:
    model, flops = plan.mesh.shape[MODEL], times["FLOPs"] * plan.mesh.shape[MODEL] * chip.flops
    bound = max(times, key=lambda name: times[name])
    once = "candidate" if plan.noise is not None else "batch"
    say(f"  {flops / 1e12:.2f} TFLOP a {once}; seconds on {model} chips: " + ", ".join(f"{name} {t:.3f}" for name, t in times.items()))
    say(f"  roofline {1 / times[bound] / model:.3f} {once}s/s/chip, bound by {bound}".replace("batchs", "batches"))
    chip_figures = f"{chip.flops / 1e12:.0f} TFLOP/s bf16, {chip.bandwidth / 1e9:.0f} GB/s HBM, a ring of {chip.ring / 1e9:.0f} GB/s"
    say(f"  assumed: {chip_figures}; weights read once in each of {passes} passes;")
    say("  the three overlap fully, and noise and softmax are hidden under them")
