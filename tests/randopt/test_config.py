import dataclasses

import pytest

from perturbjax.errors import InputError
from perturbjax.randopt.config import SearchConfig


def test_the_default_run_is_valid_and_as_large_as_promised():
    config = SearchConfig()
    config.validate()
    assert config.population >= 48 and config.top_k >= 5
    assert config.search_examples >= 64 and config.select_examples >= 64 and config.test_examples >= 256


COUNTS = ["population", "top_k", "search_examples", "select_examples", "test_examples", "chunk", "in_flight", "rank", "max_new_tokens"]


@pytest.mark.parametrize("value", [0, -3, True, 2.5, float("nan")])
@pytest.mark.parametrize("name", COUNTS)
def test_counts_must_be_positive_integers(name, value):
    flag = "--" + name.replace("_", "-")
    with pytest.raises(InputError, match=f"^{flag} {value}: an integer of at least 1 is required$"):
        dataclasses.replace(SearchConfig(), **{name: value}).validate()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 49}, r"--top-k 49: at most --population 48"),
        ({"population": 47, "antithetic": True}, r"--population 47: .* even"),
        ({"population": 2**32 + 2, "top_k": 1}, r"--population 4294967298: .* 32-bit"),
        ({"in_flight": 9, "chunk": 8}, r"--in-flight 9: at most --chunk 8"),
        ({"seed": -1}, r"--seed -1"),
        ({"seed": 2**32}, r"--seed 4294967296"),
        ({"sigmas": ()}, r"--sigmas: at least one"),
        ({"sigmas": (0.001, 0.0)}, r"--sigmas 0.0: .* positive"),
        ({"sigmas": (-0.001,)}, r"--sigmas -0.001: .* positive"),
        ({"sigmas": (float("nan"),)}, r"--sigmas nan: .* finite"),
        ({"sigmas": (float("inf"),)}, r"--sigmas inf: .* finite"),
        ({"sigmas": (1e39,)}, r"--sigmas 1e\+39: outside the range of float32"),
        ({"sigmas": (1e-45,)}, r"--sigmas 1e-45: outside the range of float32"),
        ({"sigmas": (0.001, 0.002, 0.001)}, r"--sigmas 0.001,0.002,0.001: .* twice"),
        ({"sigmas": (0.001, 0.001 * (1 + 1e-12))}, r"twice"),
        ({"noise": "uniform"}, r"--noise uniform: one of gaussian, rademacher"),
        ({"scale": "relative"}, r"--scale relative: one of absolute, rms, modular"),
        ({"racing": "sprint"}, r"--racing sprint: one of off, halving, bounds"),
        ({"strategy": "eager"}, r"--strategy eager: one of auto, lazy, copy, low_rank"),
        ({"strategy": "low_rank"}, r"--strategy low_rank: .* --rank"),
        ({"dtype": "float16"}, r"--dtype float16: one of auto, float32, bfloat16"),
        ({"model": " "}, r"--model ' '"),
        ({"task": "a\nb"}, r"--task"),
    ],
)
def test_every_other_mistake_is_one_line_that_names_the_flag(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        dataclasses.replace(SearchConfig(), **changes).validate()
    assert "\n" not in str(caught.value)
