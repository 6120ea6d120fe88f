"""An error surface and what an error takes, as lines of a terminal: of any grid."""

from collections.abc import Mapping, Sequence

import numpy as np

from perturbjax.caulking.complexity import Required, Surface


def surface_lines(what: str, surface: Surface, source: Mapping[float, Sequence[float]]) -> list[str]:
    """A row for each m, a column for each n: the mean error over seeds and its 95 % interval.

    Args:
        what: the method, and what its error is.
        surface: of a grid whose qualities are m, the rows of the pretraining.
        source: m -> errors of the pretrained model on its source, one a seed.
    """
    lines = [
        f"{what}, mean over {len(surface.seeds)} seeds [95 %]",
        f"{'m':>8} {'source':>8}" + "".join(f"{f'n = {n}':>22}" for n in surface.samples),
    ]
    for m, means, intervals in zip(surface.qualities, surface.mean, surface.interval(), strict=True):
        found = "" if m is None else f"{np.mean(source[m]):8.3f}"
        shown = (f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, (low, high) in zip(means, intervals, strict=True))
        lines.append(f"{'scratch' if m is None else f'{m:.0f}':>8} {found:>8}" + "".join(f"{text:>22}" for text in shown))
    return lines


def required_lines(method: str, found: Mapping[float | None, Required]) -> list[str]:
    """A line for each m: the rows that an error takes, with the interval, and the norm of the caulk there."""
    lines = []
    for m, required in found.items():
        norm = "" if m is None or required.censored == "above" else f"   norm {required.norm:.2f}"
        lines.append(f"{method:8} {'' if m is None else f'm = {m:.0f}':10} {required.words:>22}{norm}")
    return lines
