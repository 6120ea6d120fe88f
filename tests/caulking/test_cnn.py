"""The network of ``scripts/recipes/caulking/cnn.py``, and the rows that it reads."""

import gzip
from typing import Any

import jax
import numpy as np
import pytest
from recipes.caulking.cnn import SOURCE, STAGES, Sets, Sizes, forward, methods, network, wrong

SIZES = Sizes(channels=(4, 6, 8), sources=(5, 20), samples=(4, 10), test=6, rank=2, bottleneck=3)


@pytest.fixture(scope="module")
def params():
    found = network(SIZES.channels)(jax.random.key(0))
    rng = np.random.default_rng(0)
    return found | {"head": {name: rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in found["head"].items()}}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).uniform(size=(3, 28, 28, 1)).astype(np.float32)


def test_stages_are_convolutions(params, images):
    x: Any = images
    for name, inputs, outputs in zip(STAGES, (1, *SIZES.channels), SIZES.channels, strict=False):
        kernel = params[name]["kernel"].reshape(3, 3, inputs, outputs)
        y = jax.lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = np.maximum(np.asarray(y) + np.asarray(params[name]["bias"]), 0)
    expected = x.mean(axis=(1, 2)) @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(forward(params, images), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", ["head", "adapter", "lora"])
def test_a_caulk_begins_as_the_base(params, images, name):
    method = methods(SIZES)[name]
    start = method.init(params, jax.random.key(1))
    np.testing.assert_array_equal(forward(method.apply(params, start), images), forward(params, images))
    caulked = {path.split("/")[0] for path in map(str, start["caulk"])}
    assert caulked == ({"head"} if name == "head" else set(STAGES))


def test_rows_of_the_parts_share_no_image_and_no_class(tmp_path):
    rng, written = np.random.default_rng(2), {}
    for part, count in (("train", 80), ("t10k", 60)):
        images, labels = rng.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count, dtype=np.uint8) % 10
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">i4").tobytes()
            (tmp_path / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
        written[part] = images, labels
    sets = Sets.read(tmp_path, SIZES)
    assert [len(rows[1]) for rows in vars(sets).values()] == [20, 6, 6, 10, 6]
    assert len({image.tobytes() for images, _ in vars(sets).values() for image in images}) == 48
    images, labels = written["train"]
    np.testing.assert_array_equal(sets.source[0][..., 0], images[labels < len(SOURCE)][:20] / np.float32(255))
    np.testing.assert_array_equal(sets.target[1], (labels[labels >= len(SOURCE)] - len(SOURCE))[:10])


def test_wrong_answers_are_counted(params, images):
    answers = np.asarray(forward(params, images)).argmax(axis=-1)
    assert float(wrong(params, (images, (answers + np.array([0, 1, 0])) % 5))) == pytest.approx(1 / 3)
