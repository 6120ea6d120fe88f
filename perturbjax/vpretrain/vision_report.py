"""The report page of an experiment on images: whether steered masks helped, beside what, and pictures of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from perturbjax.report.page import missing_extra, write_page
from perturbjax.report.schema import Headline, Verdict
from perturbjax.report.words import percent, plural
from perturbjax.vpretrain.results import probe_pairs
from perturbjax.vpretrain.vision_results import BETTER, VISION_START, Difference, VisionResults, half_width, read_vision_results, spread

FIGURES = {"class_accuracy": "class", "segmentation": "patches right", "miou": "IoU", "depth": "depth error"}
"""Figure of a probe -> words."""
DENSE_FIGURES = {"miou": "intersection over union of segmentation", "depth": "depth"}
"""What feedback steers towards -> words."""
STILL = 0.05
"""A designer whose masks of figures differ in the mean by less from the ratio hardly chose (ours)."""


def write_vision_report(folder: str | Path) -> Path:
    """Write ``plots/*.png`` and ``report.html`` of a finished experiment; a second call gives the same bytes.

    Args:
        folder: holds results.json, and plots/masks.png where there was a designer.

    Returns:
        The path of report.html.

    Raises:
        InputError: results.json is missing or damaged, or the ``report`` extra is not installed.
    """
    folder = Path(folder)
    results = read_vision_results(folder / "results.json")
    report, plots = folder / "report.html", _write_plots(folder / "plots", results)
    values = {
        "results": results,
        "config": results.settings,
        "headline": headline(results),
        "rows": [(arm, _cells(results, arm)) for arm in results.arms],
        "pairs": [(arm, other, _differences(results, arm, other)) for arm, other in results.pairs],
        "figures": FIGURES,
        "caveats": list(_caveats(results)),
        "setup": _setup(results),
        "command": results.command,
    }
    write_page(report, "perturbjax.vpretrain", values, {}, plots, template="vision.html")
    return report


def _write_plots(folder: Path, results: VisionResults) -> list[Path]:
    try:
        from perturbjax.vpretrain.plots import plot_probe
        from perturbjax.vpretrain.vision_plots import plot_vision_learning
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error

    folder.mkdir(exist_ok=True)
    plots = list[Path]()
    if all(arm.looks and all(look.validation for look in arm.looks) for seed in results.seeds for arm in seed.values()):
        for against in ("steps", "seconds"):
            plots.append(folder / f"learning_{against}.png")
            plot_vision_learning(plots[-1], results, against)
    steered = [seed["value"].looks for seed in results.seeds if "value" in seed]
    if any(map(probe_pairs, steered)):
        plots.append(folder / "probe.png")
        plot_probe(plots[-1], steered, unit="")
    masks = folder / "masks.png"
    return [*plots, *([masks] if masks.exists() else [])]


def headline(results: VisionResults) -> Headline:
    """Grades the arm of the value beside random masks, which is masking without steering; beside plain training without them.

    It has helped, or hurt, where segmentation or depth is clearly better, or worse, and the other is not clearly the opposite.
    """
    other = next((arm for arm in ("random masks", "plain", VISION_START) if arm in results.arms), VISION_START)
    if "value" not in results.arms:
        return Headline("no clear effect", "No designer followed the value", ("The arms are controls alone.",))
    found = {figure: results.difference("value", other, figure) for figure in DENSE_FIGURES}
    clear: set[Verdict] = {each.verdict for each in found.values() if each.verdict != "no clear effect"}
    verdict: Verdict = "no clear effect" if len(clear) != 1 else clear.pop()
    title = {
        "helped": f"Designed masks did better than {other}",
        "hurt": f"Designed masks did worse than {other}",
        "no clear effect": f"No clear effect of designed masks beside {other}",
    }[verdict]
    sentences = [
        f"Beside {other}, {words} differs by {gain(each)} (above 0 is better), and by 0 or more in {each.wins} of {each.seeds} seeds."
        for (words, each) in zip(DENSE_FIGURES.values(), found.values(), strict=True)
    ]
    if "plain" in results.arms and other != "plain":
        beside = (results.difference("value", "plain", figure) for figure in DENSE_FIGURES)
        both = "; ".join(
            f"{words} {gain(each)} ({each.wins} of {each.seeds})" for words, each in zip(DENSE_FIGURES.values(), beside, strict=True)
        )
        sentences.append(f"Beside plain self-distillation, without masks: {both}.")
    return Headline(verdict, title, (*sentences, *_controls(results)))


def _controls(results: VisionResults) -> Iterator[str]:
    if "random direction" in results.arms:
        found = [results.difference("value", "random direction", figure).verdict for figure in DENSE_FIGURES]
        if "helped" not in found:
            as_well = "A designer that follows a random direction did as well, within chance, or better"
            yield f"{as_well}: no effect is shown to come from the feedback."
    masks = [seed["value"].on_figures for seed in results.seeds]
    still = sum(mask is not None and abs(mask - results.ratio) < STILL for mask in masks)
    if still:
        of_all = f"within {100 * STILL:.0f} points of that of all patches, {percent(results.ratio)}"
        yield f"In {still} of {plural(len(masks), 'seed')} the designer hardly chose: its mean mask of figures is {of_all}."


def _caveats(results: VisionResults) -> Iterator[str]:
    seeds = len(results.seeds)
    if seeds < 2:
        yield "One seed: there are no intervals."
    else:
        yield f"Intervals are Student's, over {seeds} seeds: each has its own scenes, start and order."
    yield "The arms took equal steps and batches, not equal time: the second plot of learning has the time."
    r = _mean(results, "value", "r")
    if r is not None:
        half = half_width([seed["value"].r for seed in results.seeds if seed["value"].r is not None])  # pyright: ignore[reportArgumentType]
        unclear = half is not None and abs(r) <= half
        yield f"Predicted and realized falls correlate by {r:.2f}" + (", which is not clearly different from 0." if unclear else ".")
    chance = _mean(results, VISION_START, "class_accuracy")
    best = max(results.values(arm, "class_accuracy").mean() for arm in results.arms)
    if chance is not None and best < chance + 0.05:
        yield "No arm's class token knows the class better than that of step 0 by 5 points: that probe tells nothing here."
    yield "A head of segmentation and depth is fitted anew at each update, so what is realized is more than what is predicted."


def _mean(results: VisionResults, arm: str, figure: str) -> float | None:
    if arm not in results.arms:
        return None
    found = [value for value in (getattr(seed[arm], figure) for seed in results.seeds) if value is not None]
    return float(np.mean(found)) if found else None


def _cells(results: VisionResults, arm: str) -> list[str]:
    values = [results.values(arm, figure) for figure in BETTER]
    found = [spread(each.mean(), half_width(each), 3) for each in values]
    r, seconds = _mean(results, arm, "r"), _mean(results, arm, "seconds")
    return [*found, "" if r is None else f"{r:.2f}", f"{seconds:.0f} s" if seconds else ""]


def _differences(results: VisionResults, arm: str, other: str) -> list[str]:
    found = [results.difference(arm, other, figure) for figure in BETTER]
    return [f"{gain(each, 3)} ({each.wins}/{each.seeds})" for each in found]


def gain(found: Difference, digits: int = 4) -> str:
    """A difference with its sign: ``+0.0123 ± 0.0045``."""
    return ("+" if found.mean >= 0 else "") + spread(found.mean, found.half, digits)


def _setup(results: VisionResults) -> list[tuple[str, str]]:
    last = results.first_seed + len(results.seeds) - 1
    seeds = str(last) if last == results.first_seed else f"{results.first_seed} to {last}"
    return [("Images", results.images), ("Mean of all masks", percent(results.ratio)), ("Seeds", seeds)]
