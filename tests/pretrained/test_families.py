"""The table of model families: what every record must satisfy, so that the loaders and export can rely on it."""

import dataclasses
import json
import math

import pytest
from support.paths import FIXTURES, TINY_MODELS

from perturbjax.errors import InputError
from perturbjax.models import DecoderConfig, param_shapes
from perturbjax.pretrained.families import FAMILIES
from perturbjax.pretrained.hf_config import decoder_config, hf_config
from perturbjax.pretrained.params import check_names, tensor_names


def small(family, tied_head):
    config = DecoderConfig(
        architecture=family.name,
        vocab_size=11,
        hidden_size=8,
        intermediate_size=12,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        rope_theta=5e5,
        norm_eps=1e-5,
        tied_head=tied_head,
        max_positions=77,
        window=family.window,
        **family.decoder,
    )
    return dataclasses.replace(config, **dict.fromkeys(family.numbers, 6))


def test_names_and_classes_are_unique():
    for attribute in ("name", "hf_class", "model_type"):
        assert len({getattr(family, attribute) for family in FAMILIES.values()}) == len(FAMILIES)
    assert all(key == family.name for key, family in FAMILIES.items())


def test_every_family_has_a_tiny_model():
    """Without one no test would run its decoder: tests/fixtures, from scripts/make_fixtures.py."""
    found = {json.loads((FIXTURES / name / "config.json").read_text())["architectures"][0] for name in TINY_MODELS}
    assert found == {family.hf_class for family in FAMILIES.values()}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
@pytest.mark.parametrize("tied_head", [False, True])
def test_every_parameter_has_its_own_tensor_in_both_formats(family, tied_head):
    config = small(family, tied_head)
    shapes = param_shapes(config)
    for file_format in ("hf", "gguf"):
        expected = tensor_names(config, {path: getattr(tensor, file_format) for path, tensor in family.tensors.items()})
        counts = [math.prod(shape[: getattr(family.tensors[path], file_format).count("{}")]) for path, shape in shapes.items()]
        assert set(expected.values()) == shapes.keys() and len(expected) == sum(counts)
        assert all(count == 1 or path.startswith("layers/") for path, count in zip(shapes, counts, strict=True))
        check_names(config, expected, expected)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
@pytest.mark.parametrize("tied_head", [False, True])
def test_config_json_that_is_written_describes_the_same_decoder(family, tied_head):
    config = small(family, tied_head)
    raw = hf_config(config, (1, 2), 0, 1)
    assert decoder_config(raw) == config
    assert decoder_config({key: value for key, value in raw.items() if key != "architectures"}) == config, "model_type alone will do"
    assert family.hf_extras.items() <= raw.items()


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_refusals_say_what_is_required(family):
    raw = hf_config(small(family, True), (1,), None, 1)
    keys = [refusal.option for refusal in family.refusals if " " not in refusal.option]
    assert {"quantization_config", "mlp_bias"} <= set(keys)
    for refusal in family.refusals:
        assert not refusal.is_set(raw)
    for key in keys:
        with pytest.raises(InputError, match=rf"^config\.json: {key} 'other' is not supported; required: "):
            decoder_config(raw | {key: "other"})


def test_a_name_outside_the_table_is_an_error():
    config = dataclasses.replace(small(FAMILIES["llama"], True), architecture="gemma2")
    with pytest.raises(KeyError, match="gemma2"):
        hf_config(config, (1,), None, 1)
