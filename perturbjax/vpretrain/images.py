"""Rows of images to train on, labelled or not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perturbjax.errors import InputError
from perturbjax.models.vit import ViTConfig


@dataclass(frozen=True)
class Images:
    """Rows of images for ``train.loop.fit``: ``image`` (N, S, S, C), and of labelled ones ``classes`` (N, P) int32 and ``depth`` (N, P)."""

    arrays: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.arrays["image"])

    @property
    def tokens(self) -> int:
        """Images: what the loop counts."""
        return len(self)

    def batch(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of some rows, with ``row``, their numbers, by which their views are drawn."""
        found = {name: array[numbers] for name, array in self.arrays.items()}
        return found | {
            "row": numbers.astype(np.int32),
            "segments": np.zeros((len(numbers), 1), np.int32),
            "weights": np.ones((len(numbers), 1), np.float32),
        }


def check_images(name: str, rows: Images, vit: ViTConfig, classes: int | None) -> None:
    """Raises ``InputError`` unless these are images that a student sees, and with ``classes`` labelled ones.

    Args:
        name: of the argument.
        rows: the images.
        vit: the student.
        classes: how many there are.
    """
    arrays, patches = rows.arrays, vit.grid**2
    expected: dict[str, tuple[int, ...]] = {"image": (vit.image, vit.image, vit.channels)}
    if classes is not None:
        expected |= {"classes": (patches,), "depth": (patches,)}
    for part, shape in expected.items():
        if part not in arrays or arrays[part].shape != (len(rows), *shape):
            found = arrays[part].shape if part in arrays else "not there"
            raise InputError(f"`{name}` {part} {found}: an array of shape {(len(rows), *shape)} is required")
    if classes is not None and not ((arrays["classes"] >= 0) & (arrays["classes"] < classes)).all():
        raise InputError(f"`{name}` classes {arrays['classes'].min()} to {arrays['classes'].max()}: 0 to {classes - 1} are required")
