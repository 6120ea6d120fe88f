"""The experiment of ``scripts/recipes/caulking`` at a small size: better pretraining saves target samples, shuffled labels do not."""

import numpy as np
import pytest
from recipes.caulking.teacher_student import Problem, Toy, experiment

from perturbjax.caulking.complexity import surfaces

SMALL = Toy(
    inputs=8, hidden=12, outputs=12, width=24, sources=(64, 4096), samples=(16, 64, 256), test=512, lengths=(30, 300), steps=150, batch=16
)  # fmt: skip
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def found():
    return experiment(SMALL, SEEDS, ("lora", "scratch"))


def test_a_better_source_saves_target_samples(found):
    table = surfaces(found.cells)
    print({name: surface.mean.round(3).tolist() for name, surface in table.items()}, found.source)
    assert np.mean(found.source[4096.0]) < 0.5 * np.mean(found.source[64.0])
    poor, good = table["lora"].mean
    assert (good < poor).all()
    required = table["lora"].required(0.2)
    assert required[4096.0].samples < 0.5 * required[64.0].samples
    assert required[4096.0].samples < 0.5 * table["scratch"].required(0.2)[None].samples


def test_shuffled_source_labels_save_nothing(found):
    control = surfaces(experiment(SMALL, SEEDS, ("lora",), shuffle=True).cells)["lora"]
    print(control.mean.round(3).tolist())
    poor, good = control.mean[:, -1]
    assert 0.7 < good / poor < 1.4 and good > 1.5 * surfaces(found.cells)["lora"].mean[1, -1]


def test_rows_of_a_seed_do_not_depend_on_the_other_seeds():
    both, one = Problem.draw(SMALL, (0, 1)), Problem.draw(SMALL, (1,))
    np.testing.assert_array_equal(both.target[0][1], one.target[0][0])
    shuffled = one.shuffled()
    assert sorted(shuffled.source[1][0, :, 0]) == sorted(one.source[1][0, :, 0])
    np.testing.assert_array_equal(shuffled.source[0], one.source[0])
