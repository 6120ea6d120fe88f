"""Names beside the ends of lines."""

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.text import Annotation, Text

from perturbjax.report.figure import label_right, new_figure


@pytest.mark.parametrize("ends", [(1.0, 1.0, 1.0), (0.0, 0.01, 0.02, 0.5), (0.1, 0.5, 0.9), (0.97, 0.98, 0.99, 1.0)])
@pytest.mark.parametrize("height", [2.0, 5.0])
def test_names_stand_apart_and_within_the_axes(ends, height):
    figure, axes = new_figure(2 * height, rows=2)
    axes[0].set_ylim(0, 1)
    label_right(axes[0], [(end, f"name {number}", "black") for number, end in enumerate(ends)])
    figure.draw_without_rendering()
    texts = [text for text in axes[0].texts if isinstance(text, Annotation)]
    boxes = [Text.get_window_extent(text) for text in texts]
    assert all(above.y0 >= below.y1 - 1 for below, above in pairwise(boxes))
    heights = np.array([text.xyann[1] for text in texts])
    assert heights.min() >= 0 and heights.max() <= 1
