"""The plots of an experiment on images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from perturbjax.report.figure import BLUE, GREY, INK, VERMILLION, label_right, new_figure, save
from perturbjax.vpretrain.vision import VisionTask
from perturbjax.vpretrain.vision_results import VISION_START, VisionResults

COLORS = {"value": BLUE, "plain": INK, "random masks": GREY, "random direction": VERMILLION}
PANELS = {"segmentation": "segmentation, nats a patch", "depth": "depth, mean error"}
"""Losses of validation -> words."""


def plot_vision_learning(path: Path, results: VisionResults, against: str) -> None:
    """Losses of validation scenes, a mean over seeds, of each arm against ``steps`` or ``seconds``."""
    figure, axes = new_figure(5.4, rows=2)
    for axis, (name, words) in zip(axes, PANELS.items(), strict=True):
        ends = []
        for arm, color in COLORS.items():
            if arm in results.arms:
                looks = list(zip(*(seed[VISION_START].looks + seed[arm].looks for seed in results.seeds), strict=True))
                x = [np.mean([look.step if against == "steps" else look.seconds for look in each]) for each in looks]
                y = [float(np.mean([look.validation[name] for look in each])) for each in looks]
                axis.plot(x, y, color=color, marker="o", markersize=3.5, linewidth=1.8)
                ends.append((y[-1], arm, color))
        axis.set_ylabel(words)
        axis.yaxis.set_major_locator(MaxNLocator(5))
        axis.grid(axis="y", color="#e4e4e4", linewidth=0.8)
        axis.set_axisbelow(True)
        label_right(axis, ends)
    axes[-1].set_xlabel("optimizer steps" if against == "steps" else "seconds of steps")
    axes[-1].xaxis.set_major_locator(MaxNLocator(7, integer=against == "steps"))
    save(figure, path)


def mean_masks(task: VisionTask, designer: Any, images: np.ndarray, draws: int = 16) -> np.ndarray:
    """Mean mask of each patch over some draws of its noise: (B, P), 1 where a patch is always masked."""

    @jax.jit
    def mean(designer: Any, images: jax.Array) -> jax.Array:
        logits = task.designer.logits(designer, images)
        noise = jax.random.logistic(jax.random.key(0), (draws, *logits.shape))
        return jax.vmap(lambda noise: task.designer.masks(logits, noise))(noise).mean(axis=0)

    return np.asarray(mean(designer, images))


def plot_masks(path: Path, task: VisionTask, designer: Any, images: np.ndarray, pixels: np.ndarray) -> None:
    """Images as pixels of 0 to 1, the mean masks of the designer on them (white: masked), and a mask as the student gets it."""
    figure, grid = Figure(figsize=(1.1 * len(images), 3.5), layout="constrained"), task.learner.vit.grid
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, len(images), squeeze=False)
    mean, one = (mean_masks(task, designer, images, draws).reshape(-1, grid, grid) for draws in (64, 1))
    for axis in axes.ravel():
        axis.axis("off")
    for column, image in enumerate(pixels):
        axes[0, column].imshow(image)
        axes[1, column].imshow(mean[column], cmap="gray", vmin=0, vmax=1)
        hidden = np.kron(one[column], np.ones((task.learner.vit.patch,) * 2))[..., None]
        axes[2, column].imshow((1 - hidden) * image + hidden * 0.5)
    save(figure, path)
