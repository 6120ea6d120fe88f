import json
import typing

import pytest
from support.configs import config_of

from perturbjax.errors import InputError
from perturbjax.noise import DISTRIBUTIONS, Rule
from perturbjax.noise.distributions import DistributionName
from perturbjax.randopt import Config, Search
from perturbjax.records import from_json, to_json


def test_the_default_run_is_valid_and_as_large_as_promised():
    config = Config()
    config.validate()
    assert config.search.population >= 48 and config.search.top_k >= 5
    assert config.data.search_examples >= 64 and config.data.select_examples >= 64 and config.data.test_examples >= 256


COUNTS = ["population", "top_k", "search_examples", "select_examples", "test_examples", "chunk", "in_flight", "rank", "max_new_tokens"]


@pytest.mark.parametrize("value", [0, -3, True, 2.5, float("nan")])
@pytest.mark.parametrize("name", [*COUNTS, "screened"])
def test_counts_must_be_positive_integers(name, value):
    with pytest.raises(InputError, match=f"^`{name}` {value}: (must be )?an integer of at least 1"):
        config_of(**{name: value}).validate()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 49}, r"`top_k` 49: at most `population` 48"),
        ({"population": 47, "antithetic": True}, r"`population` 47: .* pairs"),
        ({"population": 2**31, "top_k": 1}, r"`population` 2147483648: at most 2147483647"),
        ({"population": 2**30}, r"`population` 1073741824, `search_examples` 64: a table of 68719476736 scores; at most 2147483648"),
        ({"chunk": 2**20 + 1}, r"`chunk` 1048577: at most 1048576"),
        ({"in_flight": 9, "chunk": 8}, r"`in_flight` 9: at most `chunk` 8"),
        ({"seed": -1}, r"`seed` -1"),
        ({"seed": 2**32}, r"`seed` 4294967296"),
        ({"sigmas": ()}, r"`sigmas` .*: at least one"),
        ({"sigmas": (0.001, 0.0)}, r"`sigmas` 0.0: .* positive"),
        ({"sigmas": (-0.001,)}, r"`sigmas` -0.001: .* positive"),
        ({"sigmas": (float("nan"),)}, r"`sigmas` nan: .* finite"),
        ({"sigmas": (float("inf"),)}, r"`sigmas` inf: .* finite"),
        ({"sigmas": (1e39,)}, r"`sigmas` 1e\+39: .* range of float32"),
        ({"sigmas": (1e-45,)}, r"`sigmas` 1e-45: .* range of float32"),
        ({"sigmas": (0.001, 0.002, 0.001)}, r"`sigmas` 0.001,0.002,0.001: .* twice"),
        ({"sigmas": (0.001, 0.001 * (1 + 1e-12))}, r"twice"),
        ({"noise": "uniform"}, r"`noise` uniform: one of gaussian, rademacher"),
        ({"scale": "relative"}, r"`scale` relative: one of absolute, rms, modular"),
        ({"scale": "modular"}, r"`sigmas` 0.0005,0.001,0.002: .* they are R, 0.16 to 0.64 .* or auto"),
        ({"racing": "sprint"}, r"`racing` sprint: one of off, halving, bounds, dead"),
        ({"searcher": "grid"}, r"`searcher` grid: one of random, screen, halving"),
        ({"searcher": "halving"}, r"`racing` halving: `searcher` halving compares sigmas .*; add `racing` off"),
        ({"searcher": "halving", "racing": "dead"}, r"`racing` dead: `searcher` halving"),
        ({"searcher": "halving", "racing": "off", "sigmas": (0.001,)}, r"`sigmas`: at least 2 are required with `searcher` halving"),
        ({"searcher": "halving", "racing": "off", "population": 35}, r"`population` 35: 36 are required to halve 3 sigmas"),
        (
            {"searcher": "halving", "racing": "off", "population": 2**31 - 2, "sigmas": (0.1, 0.2, 0.3, 0.4)},
            r"`population` 2147483646: .* from 5010795180, at most 2\*\*32",
        ),
        ({"searcher": "halving", "racing": "off", "screened": 100}, r"`screened` 100: only `searcher` screen"),
        ({"screened": 1000}, r"`screened` 1000: only `searcher` screen takes it"),
        ({"searcher": "screen"}, r"`searcher` screen: needs `screened`"),
        ({"searcher": "screen", "screened": 48}, r"`screened` 48: from 49, one more than `population`, to 67108864 are required"),
        ({"searcher": "screen", "screened": 2**30}, r"`screened` 1073741824: .* to 67108864"),
        ({"searcher": "screen", "screened": 101, "antithetic": True}, r"`screened` 101: .* pairs"),
        ({"searcher": "screen", "screened": 9, "population": 3, "top_k": 1}, r"`population` 3: .* takes from 4, .*, to 262144"),
        ({"searcher": "screen", "screened": 2**20, "population": 2**19}, r"`population` 524288: .* takes from 4, .*, to 262144"),
        ({"strategy": "eager"}, r"`strategy` eager: one of auto, lazy, copy, low_rank"),
        ({"strategy": "low_rank"}, r"`strategy` low_rank: .* `rank`"),
        ({"dtype": "float16"}, r"`dtype` float16: one of auto, float32, bfloat16"),
        ({"model": " "}, r"`model` ' '"),
        ({"task": "a\nb"}, r"`task`"),
    ],
)
def test_every_other_mistake_is_one_line_that_names_the_field(changes, message):
    with pytest.raises(InputError, match=message) as caught:
        config_of(**changes).validate()
    assert "\n" not in str(caught.value)


def test_the_whole_population_is_what_is_screened():
    search = config_of(searcher="screen", screened=1000, population=47, antithetic=True).search
    search.validate()
    assert len(search.to_population()) == 1000 and search.halving is None
    assert len(config_of(searcher="halving", racing="off").search.to_population()) == 90
    config_of(searcher="halving", racing="off", sigmas="auto").validate()
    assert config_of(population=47).search.to_population().size == 47


def test_choices_of_the_noise_are_the_table_of_distributions_and_the_help_is_theirs():
    import perturbjax.cli.randopt  # writes the help

    assert perturbjax.cli.randopt.__doc__ and typing.get_args(DistributionName) == tuple(DISTRIBUTIONS)
    assert all(f"{name} ({record.help})" in (Config.__doc__ or "") for name, record in DISTRIBUTIONS.items())


def test_settings_survive_json():
    config = config_of(sigmas=(0.1,), rules=(Rule("norm", None), Rule("embed", "rms")), out=None, rank=2, mesh="4x2")
    assert from_json(Config, json.loads(json.dumps(to_json(config))), "config.json") == config
    with pytest.raises(InputError, match=rf"config.json: search.noise \"cauchy\": {' or '.join(DISTRIBUTIONS)} is required"):
        from_json(Config, to_json(config) | {"search": to_json(Search()) | {"noise": "cauchy"}}, "config.json")
