"""Scenes whose segmentation and depth are known: a figure of a data set, enlarged, at a place of its own on a texture.

A figure's pixels are as far away as it is small, the texture is farther than any, and mostly darker. Labels are those of patches.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from perturbjax.errors import InputError
from perturbjax.tasks.idx import read_idx
from perturbjax.vpretrain.images import Images

FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package has the data set."""
INK = 0.4
"""From this strength on a pixel is one of the figure."""
COVERED = 0.25
"""A patch is the figure's from this share of its pixels on."""
SIZES = 12, 26
"""Pixels of a side of a figure, the smallest and the largest."""
FARTHEST = 1.5
"""Depth of the texture, in depths of the smallest figure."""
MEAN, SCALE = 0.45, 0.2
"""Of pixels: images have their distance from the mean, in this scale. Otherwise the outputs of a student without training are much alike
for all images, and its teacher's distributions near uniform."""
CLASSES = 2
"""Of a patch: texture, figure."""


@dataclass(frozen=True)
class Figures:
    """Images (N, h, w) of 0 to 1, and their classes from 0 to 9."""

    images: np.ndarray
    labels: np.ndarray

    def parts(self, sizes: tuple[int, ...], seed: int) -> list["Figures"]:
        """Disjoint parts of so many figures each, in an order of the seed's."""
        order = np.random.default_rng(seed).permutation(len(self.labels))[: sum(sizes)]
        return [Figures(self.images[part], self.labels[part]) for part in np.split(order, np.cumsum(sizes)[:-1])]


def read_figures(name: str) -> Figures:
    """``digits``, the 1,797 of scikit-learn; the training images of ``fashion``, the Debian package of Fashion-MNIST, or of a folder
    with its files; or the training rows of a data set with ``image`` and ``label``, by its name for datasets."""
    if name == "digits":
        from sklearn.datasets import load_digits  # pyright: ignore[reportMissingImports]

        found: Any = load_digits()
        return Figures(found.images.astype(np.float32) / 16, found.target.astype(np.int32))
    folder = FASHION if name == "fashion" else Path(name)
    if name == "fashion" or folder.is_dir():
        images, labels = (read_idx(folder / f"train-{part}-ubyte.gz") for part in ("images-idx3", "labels-idx1"))
        if images.ndim != 3 or labels.shape != images.shape[:1]:
            raise InputError(f"{folder}: images {images.shape} and labels {labels.shape}: a label for each image is required")
        return Figures(images.astype(np.float32) / 255, labels.astype(np.int32))
    import datasets

    rows = datasets.load_dataset(name, split="train").with_format("numpy")[:]
    return Figures(np.asarray(rows["image"], np.float32) / 255, np.asarray(rows["label"], np.int32))


def texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """Three waves of random direction, length and color around a random color: (side, side, 3)."""
    rows, columns = np.mgrid[:side, :side]
    found = np.broadcast_to(rng.uniform(0.2, 0.6, 3), (side, side, 3)).copy()
    for _ in range(3):
        angle, length = rng.uniform(0, np.pi), rng.uniform(3, 16)
        phase = 2 * np.pi * (np.cos(angle) * rows + np.sin(angle) * columns) / length + rng.uniform(0, 2 * np.pi)
        found += np.sin(phase)[..., None] * rng.uniform(-0.1, 0.1, 3)
    return found


def compose(figures: Figures, count: int, side: int, patch: int, rng: np.random.Generator) -> Images:
    """Scenes, normalized, with ``label``, the figure's class (N,), and ``classes`` and ``depth`` of patches (N, P)."""
    grid = side // patch
    images, labels = np.empty((count, side, side, 3), np.float32), np.empty(count, np.int32)
    classes, depth = np.zeros((count, grid**2), np.int32), np.full((count, grid**2), FARTHEST, np.float32)
    for number in range(count):
        which, size = rng.integers(len(figures.labels)), int(rng.integers(SIZES[0], SIZES[1] + 1))
        figure = figures.images[which]
        large = np.clip(ndimage.zoom(figure, size / len(figure), order=1), 0, 1)
        size = len(large)
        row, column = rng.integers(0, side - size + 1, 2)
        ink = np.zeros((side, side))
        ink[row : row + size, column : column + size] = large
        scene = (1 - ink[..., None]) * texture(rng, side) + ink[..., None] * rng.uniform(0.45, 1.0, 3)
        images[number], labels[number] = scene + rng.normal(0, 0.02, scene.shape), figures.labels[which]
        covered = (ink >= INK).reshape(grid, patch, grid, patch).mean(axis=(1, 3)).ravel() >= COVERED
        classes[number, covered], depth[number, covered] = 1, SIZES[0] / size
    return Images({"image": (images - MEAN) / SCALE, "label": labels, "classes": classes, "depth": depth})


def pixels(images: np.ndarray) -> np.ndarray:
    """Of normalized images: values of 0 to 1."""
    return np.clip(images * SCALE + MEAN, 0, 1)
