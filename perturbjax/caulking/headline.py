"""What a practitioner takes away, in sentences, computed from the intervals and nothing else."""

from perturbjax.caulking.results import Curve, Needed, Results
from perturbjax.report.schema import Headline, Verdict
from perturbjax.report.words import count, percent, percent_range, plural

NAMES = {
    "lora": "LoRA",
    "adapter": "bottleneck adapters",
    "head": "a new head",
    "bitfit": "biases and norms trained",
    "full": "all parameters trained",
    "scratch": "training from scratch",
}
"""Method -> what it is called in a sentence."""
FEWEST_SEEDS = 3
"""Below it nothing is concluded from intervals over seeds."""


def headline(results: Results) -> Headline:
    """The method named first, on the first base, against training from scratch if that was asked for: no winner is picked."""
    best = results.caulked[0] if results.caulked else results.curves[0]
    sentences = [sentence(results, number) for number in range(len(best.needed))]
    return Headline(_verdict(results, best), _title(results, best), (*sentences, _alone(results), _cost(results)))


def curve_name(curve: Curve) -> str:
    """``LoRA, base moved by 0.003``."""
    moved = f", base moved by {curve.sigma:g}" if curve.sigma else ""
    return f"{NAMES[curve.method]}{moved}"


def sentence(results: Results, number: int) -> str:
    """How many examples the accuracy of this number takes, for every curve: "With LoRA on this base, 80 % accuracy takes ..."."""
    level = results.curves[0].needed[number].accuracy
    parts = []
    for curve in results.caulked:
        on = "this base" if not curve.sigma else f"the base moved by {curve.sigma:g}"
        parts.append(f"with {NAMES[curve.method]} on {on}, {percent(level)} accuracy takes {curve.needed[number].words} examples")
    if results.scratch is not None:
        parts.append(f"from scratch {results.scratch.needed[number].words}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}. {_intervals(results)}"


def _intervals(results: Results) -> str:
    if results.seeds < FEWEST_SEEDS:
        return f"{plural(results.seeds, 'seed')}: too few for an interval."
    return f"Intervals are 95 %, over {results.seeds} seeds."


def _verdict(results: Results, best: Curve) -> Verdict:
    """Pretraining helps where the first accuracy takes clearly fewer examples than from scratch."""
    scratch = results.scratch
    if scratch is None or best is scratch or results.seeds < FEWEST_SEEDS:
        return "no clear effect"
    mine, other = best.needed[0], scratch.needed[0]
    if mine.censored != "above" and _high(mine) < _low(other):
        return "helped"
    return "hurt" if other.censored != "above" and _high(other) < _low(mine) else "no clear effect"


def _low(needed: Needed) -> float:
    return needed.samples if needed.low is None else needed.low


def _high(needed: Needed) -> float:
    return needed.high if needed.high is not None and needed.censored != "above" else float("inf")


def _title(results: Results, best: Curve) -> str:
    needed = best.needed[0]
    if needed.censored == "above":
        return f"{percent(needed.accuracy)} accuracy is not reached with {count(needed.samples)} examples by {curve_name(best)}"
    amount = f"at most {count(needed.samples)}" if needed.censored == "below" else f"about {count(needed.samples)}"
    return f"{percent(needed.accuracy)} accuracy takes {amount} examples with {curve_name(best)}"


def _alone(results: Results) -> str:
    first = results.bases[0]
    what = results.model.name if not first.sigma else f"{results.model.name} moved by {first.sigma:g}"
    right = f"{percent(1 - first.error)} of {count(results.n)} test questions right (95 % interval"
    return f"Without any caulk {what} gets {right} {percent_range((1 - first.interval[1], 1 - first.interval[0]))})."


def _cost(results: Results) -> str:
    trainings = plural(results.cells, "training")
    return f"The price: {trainings}, {count(results.tokens)} tokens, {count(results.test_tokens)} more to measure them."
