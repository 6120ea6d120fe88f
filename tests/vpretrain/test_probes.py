"""Linear probes of a frozen student, against what features say by construction."""

import numpy as np
import pytest
from support import vision_cases as cases

from perturbjax.vpretrain.images import Images
from perturbjax.vpretrain.probes import LinearHead, probe


def labelled(seed, label, classes, depth):
    images = cases.images(12, seed).arrays["image"]
    return Images({"image": images, "label": label, "classes": classes, "depth": depth})


def test_constant_labels_are_found_and_other_ones_are_not():
    """A head that has seen one label alone says it of every image: figures follow from how many of the test's labels are that one."""
    patches, head = cases.VIT.grid**2, LinearHead(steps=60, rate=0.3)
    zeros, half = np.zeros((12, patches), np.int32), np.full((12, patches), 0.5, np.float32)
    train = labelled(0, np.ones(12, np.int32), zeros, half)
    classes, label = zeros.copy(), np.ones(12, np.int32)
    classes[:3], label[:4] = 1, 0
    found = probe(cases.VIT, cases.student(), train, labelled(1, label, classes, half + 0.25), (2, 2), head)
    assert found.class_accuracy == pytest.approx(8 / 12) and found.segmentation == pytest.approx(9 / 12)
    assert found.miou == pytest.approx((9 / 12 + 0) / 2)  # class 0: 9 of 12 both ways; class 1: never said
    assert found.depth == pytest.approx(0.25, abs=0.05)
