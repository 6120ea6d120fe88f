"""A sigma for a model without labels: as much change of the next token as isotropic noise of 5e-4 makes.

The rule. RandOpt's best sigma in the literature is 5e-4, isotropic (gaussian noise of full rank, scale "absolute", on all parameters), on
Qwen2.5 of 1.5B to 7B. That is the reference point. It is put on *this* model, and the sigma of the wanted noise is the one with the same
next-token KL and the same relative change of the hidden state, the geometric mean where the two disagree. This is how Modular-Norm RandOpt
(arXiv 2609.25745) chooses its R. For isotropic noise the rule gives 5e-4 back, whatever the model.

What it cannot know. No label is read, so it says nothing of whether any candidate is better than the base. Whether 5e-4 is right for this
model, or for this task, it takes from the literature: models unlike those of the reference may need more or less. It looks at the one token
after a prompt; replies of many tokens may diverge where that token does not.

The flat range. Small noise changes the model in proportion: KL grows as sigma squared and the hidden change as sigma. Where both ratios are
flat the model still answers as its own second-order expansion would; above, it breaks, and below, the type of the weights rounds the noise
away. A search gets the grid of the paper's released scripts, 1, 2 and 4 times the reference, translated, as far as it is flat.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from perturbjax.errors import InputError
from perturbjax.inference.next_token import Change
from perturbjax.noise import Candidate, Noise, Population
from perturbjax.noise.spec import scales
from perturbjax.tree import derived_seed, leaf_paths

REFERENCE = 5e-4
"""Sigma of the reference point: isotropic, on Qwen2.5 1.5B to 7B (arXiv 2603.12228, 2609.25745)."""
GRID = (1.0, 2.0, 4.0)
"""What a search gets, in units of the match: the released scripts use 5e-4, 1e-3, 2e-3."""
STEPS = (0.5, 1.0, 2.0, 4.0, 8.0)
"""What is measured, in units of the match that is expected."""
FLAT = 1.1
"""Largest factor by which KL / sigma^2, or the hidden change / sigma, may differ from that at the match."""
_ROUNDS = 6  # of approaching the match; a quadratic needs one
_RESAMPLES = 2000


@dataclass(frozen=True)
class Point:
    """What one sigma changes, on the mean over candidates and prompts.

    Attributes:
        sigma: of the candidates.
        kl: divergence KL(base || candidate) of the next token, in nats; ``kl_interval``: 95 %, candidates and prompts resampled.
        hidden: root mean square of the change of the hidden state that the head reads, relative to the base's.
        changed: share of prompts whose most likely next token is another.
    """

    sigma: float
    kl: float
    kl_interval: tuple[float, float]
    hidden: float
    changed: float


@dataclass(frozen=True)
class Calibration:
    """A sigma for one noise on one model's prompts.

    Attributes:
        reference: isotropic noise of ``REFERENCE`` on this model.
        points: the wanted noise at several sigmas, ascending.
        by_kl, by_hidden: the sigma with the reference's KL, and with its hidden change.
        choice: their geometric mean, to two figures.
        flat: (lowest, highest) of the sigmas measured, around the choice, at which the model changes in proportion.
        sigmas: what a search gets.
        candidates, prompts: that each point is a mean of.
    """

    reference: Point
    points: tuple[Point, ...]
    by_kl: float
    by_hidden: float
    choice: float
    flat: tuple[float, float]
    sigmas: tuple[float, ...]
    candidates: int
    prompts: int


class Measures(Protocol):
    """What the rule needs of a model and its prompts; ``NextToken`` is the real one."""

    shapes: Any
    prompts: int

    def measure(self, candidates: Candidate, noise: Noise) -> Change: ...


def calibrate(measured: Measures, noise: Noise, candidates: int, seed: int, told: Callable[[int], None] = lambda _: None) -> Calibration:
    """Measures the reference and the wanted noise, and chooses.

    Args:
        measured: the prompts of a model.
        noise: whose sigma is wanted.
        candidates: of each sigma, 2 or more. All sigmas share their draws, so that the curve is smooth.
        seed: of the draws, which are none of a search's.
        told: of how many sigmas have been measured, of ``expected_steps``.

    Raises:
        InputError: the noise changes nothing, or gives no finite logits, at any sigma tried.
    """
    population = Population(derived_seed(seed, "calibration"), candidates)
    done = 0

    def at(sigmas: Sequence[float], kind: Noise) -> list[Point]:
        nonlocal done
        points = []
        for sigma in sigmas:
            drawn = population[:]._replace(sigma=jnp.full(candidates, sigma, jnp.float32))
            points.append(_point(sigma, measured.measure(drawn, kind), seed))
            told(done := done + 1)
        return [point for point in points if math.isfinite(point.kl)]

    found = at([REFERENCE], Noise())
    if not found or not found[0].kl > 0:
        raise InputError(f"`model`: isotropic noise of {REFERENCE:g} gives it no finite next token, or changes none; give sigmas by hand")
    reference = found[0]
    points = {REFERENCE: reference} if noise == Noise() else {}
    expected = REFERENCE / step_size(measured.shapes, noise)
    for _ in range(_ROUNDS):
        points |= {point.sigma: point for point in at([] if expected in points else [expected], noise)}
        near = points.get(expected)
        if near is None:  # NaN or infinite logits
            expected /= 16
        elif near.kl > 0 and 0.5 < (factor := math.sqrt(reference.kl / near.kl)) < 2:
            break
        else:
            expected *= min(64.0, factor) if near.kl > 0 else 64.0
        done -= 1  # a miss is none of ``expected_steps``
    else:
        raise InputError(f"`noise`: no sigma near {expected:.2g} changes the next token as the reference does; give sigmas by hand")
    points |= {point.sigma: point for point in at([s * expected for s in STEPS if s * expected not in points], noise)}
    return choose(reference, tuple(points[sigma] for sigma in sorted(points)), candidates, measured.prompts)


def choose(reference: Point, points: tuple[Point, ...], candidates: int, prompts: int) -> Calibration:
    """The match by both measures, the flat range around it, and what a search gets; ``points`` ascend and surround the match."""
    by_kl = _crossing([(p.sigma, p.kl) for p in points], reference.kl)
    by_hidden = _crossing([(p.sigma, p.hidden) for p in points], reference.hidden)
    choice = rounded(math.sqrt(by_kl * by_hidden))
    nearest = min(range(len(points)), key=lambda i: abs(math.log(points[i].sigma / choice)))
    first = last = nearest
    while first > 0 and _is_flat(points[first - 1], points[nearest]):
        first -= 1
    while last < len(points) - 1 and _is_flat(points[last + 1], points[nearest]):
        last += 1
    low, high = points[first].sigma, points[last].sigma
    sigmas = tuple(rounded(step * choice) for step in GRID if step == 1 or step * choice <= high * 1.05)
    return Calibration(reference, points, by_kl, by_hidden, choice, (low, high), sigmas, candidates, prompts)


def rounded(sigma: float) -> float:
    """To two figures: the rule knows no more, and processes and meshes that round differently agree.

    >>> rounded(0.00049871)
    0.0005
    """
    return float(f"{sigma:.2g}")


def expected_steps(noise: Noise) -> int:
    """How many sigmas ``calibrate`` measures where nothing surprises it."""
    return len(STEPS) + (noise != Noise())


def step_size(shapes: object, noise: Noise) -> float:
    """Root mean square of scale over all parameters that move: what one unit of sigma is in the units of isotropic noise. Shapes are
    enough; a leaf's own size, for the scale "rms", is taken as that of a trained matrix, 0.05, which only decides where to look first."""
    factors = scales(shapes, noise, lambda path, leaf: jnp.float32(0.05**2))
    leaves = leaf_paths(shapes)
    sizes = {path: math.prod(leaves[path].shape) for path in leaves}
    total = sum(sizes.values())
    return math.sqrt(sum(sizes[path] * float(factor) ** 2 for path, factor in factors.items()) / total)


def _point(sigma: float, change: Change, seed: int) -> Point:
    n, prompts = change.kl.shape
    generator = np.random.default_rng(derived_seed(seed, "calibration interval"))
    rows = generator.multinomial(n, np.full(n, 1 / n), size=_RESAMPLES) / n
    columns = generator.multinomial(prompts, np.full(prompts, 1 / prompts), size=_RESAMPLES) / prompts
    means = np.einsum("bn,np,bp->b", rows, change.kl, columns, optimize=True)
    low, high = np.quantile(means, [0.025, 0.975]) if np.isfinite(means).all() else (math.nan, math.nan)
    hidden = math.sqrt(change.hidden.mean())
    return Point(float(sigma), float(change.kl.mean()), (float(low), float(high)), hidden, float(change.argmax.mean()))


def _crossing(curve: list[tuple[float, float]], target: float) -> float:
    """Where a curve first reaches ``target``: linear between its points in the logarithms, and beyond its ends along the last two."""
    curve = [(math.log(x), math.log(y)) for x, y in curve if y > 0]
    goal = math.log(target)
    after = next((i for i, (_, y) in enumerate(curve) if y >= goal), len(curve) - 1)
    after = min(max(after, 1), len(curve) - 1)
    (x0, y0), (x1, y1) = curve[after - 1], curve[after]
    return math.exp(x0 + (goal - y0) * (x1 - x0) / (y1 - y0)) if y1 != y0 else math.exp(x1)


def _is_flat(point: Point, other: Point) -> bool:
    """Whether a point changes the model in proportion to another."""
    ratios = [(p.kl / p.sigma**2, p.hidden / p.sigma) for p in (point, other)]
    return all(1 / FLAT <= mine / theirs <= FLAT for mine, theirs in zip(*ratios, strict=True) if theirs > 0)
