"""GGUF files: the same model written by hand in llama.cpp's layout loads to the very parameters of its Hugging Face directory."""

import json
from dataclasses import replace

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.paths import FIXTURES, TINY_MODELS
from support.tiny_gguf import gguf_metadata, gguf_tensors, write_gguf

from perturbjax.errors import InputError
from perturbjax.pretrained import load_model
from perturbjax.pretrained.families import FAMILIES
from perturbjax.pretrained.hf_config import same_factors
from perturbjax.tasks.base import Prompt
from perturbjax.tree import leaf_paths

Q8_0, Q4_0, F16 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_0, gguf.GGMLQuantizationType.F16


def assert_equal_params(left, right):
    left, right = leaf_paths(left), leaf_paths(right)
    assert left.keys() == right.keys()
    for path in left:
        np.testing.assert_array_equal(left[path], right[path], err_msg=path)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A whole, valid file, and what it was written from."""
    metadata, tensors = gguf_metadata("tiny_llama_tied"), gguf_tensors("tiny_llama_tied")
    return write_gguf(tmp_path_factory.mktemp("gguf") / "whole.gguf", metadata, tensors), metadata, tensors


def refused(path, *fragments):
    with pytest.raises(InputError) as caught:
        load_model(str(path))
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"model '{path}': ")
    for fragment in fragments:
        assert fragment in message
    return message


@pytest.mark.parametrize("fixture", TINY_MODELS)
def test_same_model_as_the_directory(fixture, tmp_path):
    directory = load_model(str(FIXTURES / fixture))
    tensors = gguf_tensors(fixture)
    if directory.config.rope_factors:
        tensors["rope_freqs.weight"] = np.asarray(directory.config.rope_factors, np.float32)
    model = load_model(str(write_gguf(tmp_path / "m.gguf", gguf_metadata(fixture), tensors)))
    assert_equal_params(model.params, directory.params)
    assert same_factors(model.config.rope_factors, directory.config.rope_factors)
    said = {"rope_factors": directory.config.rope_factors, "query_scalar": directory.config.query_scalar}
    assert replace(model.config, **said) == directory.config


@pytest.mark.parametrize("fixture", ["tiny_llama3", "tiny_qwen2", "tiny_olmo2"])
def test_same_tokenizer_as_the_directory(fixture, tmp_path):
    model = load_model(str(write_gguf(tmp_path / "m.gguf", gguf_metadata(fixture), gguf_tensors(fixture))))
    reference = json.loads((FIXTURES / fixture / "reference.json").read_text())
    for row in reference["texts"]:
        assert model.tokenizer.encode(row["text"]) == row["ids"], row["text"]
        assert model.tokenizer.encode_prompts([Prompt((), row["text"])])[0] == row["prompt_ids"], row["text"]
        assert model.tokenizer.decode(row["ids"]) == row["decoded"]
    for row in reference["chats"]:
        assert model.tokenizer.encode_prompts([Prompt(tuple(row["messages"]))])[0] == row["ids"]


def test_quantized_tensors_are_dequantized_and_named(llama, tmp_path):
    _, metadata, tensors = llama
    whole = load_model(str(llama[0]))
    kinds = {name: Q8_0 for name, tensor in tensors.items() if tensor.ndim == 2} | {"blk.0.ffn_down.weight": Q4_0}
    metadata = metadata | {"general.file_type": int(gguf.LlamaFileType.MOSTLY_Q8_0)}
    model = load_model(str(write_gguf(tmp_path / "q.gguf", metadata, tensors, kinds)))
    assert "quantization Q8_0" in model.source
    for path, value in leaf_paths(whole.params).items():
        got = leaf_paths(model.params)[path]
        # A Q8_0 step is 1/127 of the largest of 32 values, so rounding moves a value by at most half a step; Q4_0 has 8 steps.
        error = np.abs(got - value)
        coarse = path == "layers/mlp/down/kernel"
        assert error.max() <= np.abs(value).max() * (1 / 7 if coarse else 0.5 / 127 * 1.01)
        assert (error.max() > 0) == (value.ndim > 1 and not path.endswith("scale"))
    assert load_model(str(tmp_path / "q.gguf"), "bfloat16").params["norm"]["scale"].dtype == "bfloat16"


@pytest.mark.parametrize(
    "kinds",
    [{"token_embd.weight": Q4_0}, {"token_embd.weight": Q8_0}, {"token_embd.weight": F16, "output.weight": Q8_0}, {}],
)
def test_tied_matrix_stored_twice_comes_from_the_head(kinds, tmp_path):
    tensors = gguf_tensors("tiny_qwen2")
    tensors["output.weight"] = tensors["token_embd.weight"]
    model = load_model(str(write_gguf(tmp_path / "m.gguf", gguf_metadata("tiny_qwen2"), tensors, kinds)))
    assert model.config.tied_head and "head" not in model.params
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}["output.weight"]
    np.testing.assert_array_equal(model.params["embed"]["embedding"], gguf.dequantize(stored.data, stored.tensor_type))


@pytest.mark.parametrize(
    ("distance", "kinds"),
    [(1.4, {}), (1.4, {"token_embd.weight": Q4_0}), (0.1, {"token_embd.weight": Q8_0}), (0.01, {}), (0.1, {"output.weight": F16})],
)
def test_an_untied_head_stays_itself(distance, kinds, tmp_path):
    """Even one close to the embedding, unless the difference can be the rounding of the coarser copy."""
    tensors = gguf_tensors("tiny_qwen2")
    embedding = tensors["token_embd.weight"]
    head = embedding + distance * embedding.std() * np.random.default_rng(0).standard_normal(embedding.shape).astype(np.float32)
    model = load_model(str(write_gguf(tmp_path / "m.gguf", gguf_metadata("tiny_qwen2"), tensors | {"output.weight": head}, kinds)))
    assert not model.config.tied_head
    expected = head.astype(np.float16).astype(np.float32) if "output.weight" in kinds else head
    np.testing.assert_array_equal(model.params["head"]["kernel"], expected.T)


def test_llama3_rope_factors_become_its_scaling(tmp_path):
    """inverse frequencies of Llama 3.2's published parameters, from the formula of its release notes, looped."""
    size, theta = 64, 500000.0
    factors = []
    for i in range(0, size, 2):
        wavelength = 2 * np.pi * theta ** (i / size)
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192:
            factors.append(32.0)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / 32 + smooth))
    assert 1.0 in factors and 32.0 in factors and any(1 < f < 32 for f in factors)
    metadata = (
        gguf_metadata("tiny_llama_tied")
        | {
            "llama.rope.freq_base": theta,
            "llama.attention.head_count": 1,
            "llama.attention.head_count_kv": 1,
        }
        | {f"llama.{key}": size for key in ("attention.key_length", "attention.value_length", "rope.dimension_count")}
    )
    tensors = gguf_tensors("tiny_llama_tied") | {"rope_freqs.weight": np.asarray(factors, np.float32)}
    for layer in range(2):
        for name in ("q", "k", "v", "output"):
            shape = (32, size) if name == "output" else (size, 32)
            tensors[f"blk.{layer}.attn_{name}.weight"] = np.ones(shape, np.float32)
    model = load_model(str(write_gguf(tmp_path / "m.gguf", metadata, tensors)))
    assert model.hf_config["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_wrong_magic(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    refused(path, "not a GGUF file")
    path.write_bytes(b"")
    refused(path, "not a GGUF file")


@pytest.mark.parametrize("fraction", [0.0001, 0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 0.999])
def test_cut_off_anywhere(llama, fraction, tmp_path):
    whole = llama[0].read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: max(5, int(len(whole) * fraction))])
    refused(path, "cut off")


def test_cut_off_inside_an_array_of_numbers_claiming_to_be_endless(llama, tmp_path):
    """The count of a numeric array decides a loop in the reader; without a bound it would run 2**60 times."""
    whole = llama[0].read_bytes()
    key = b"tokenizer.ggml.token_type"
    # key, value type (4 bytes), element type (4), count (8)
    at = whole.index(key) + len(key) + 8
    path = tmp_path / "long.gguf"
    path.write_bytes(whole[:at] + (2**60).to_bytes(8, "little") + whole[at + 8 :])
    refused(path)


@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_header_is_refused_or_harmless(llama, data, tmp_path):
    """Whatever byte is wrong: a model, or one clear line. Never another exception."""
    whole = bytearray(llama[0].read_bytes())
    header = gguf.GGUFReader(llama[0]).data_offset
    at = data.draw(st.integers(0, header - 1))
    whole[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.gguf"
    path.write_bytes(whole)
    try:
        load_model(str(path))
    except InputError as error:
        assert "\n" not in str(error) and str(path) in str(error)


def test_missing_and_unknown_tensors(llama, tmp_path):
    _, metadata, tensors = llama
    without = {name: tensor for name, tensor in tensors.items() if name != "blk.1.ffn_up.weight"}
    refused(write_gguf(tmp_path / "a.gguf", metadata, without), "blk.1.ffn_up.weight is missing")
    without = {name: tensor for name, tensor in tensors.items() if not name.startswith("blk.1.")}
    refused(write_gguf(tmp_path / "b.gguf", metadata, without), "and 6 more are missing")
    more = tensors | {"blk.0.attn_q_norm.weight": np.ones(8, np.float32)}
    refused(write_gguf(tmp_path / "c.gguf", metadata, more), "blk.0.attn_q_norm.weight is not part of a plain llama decoder")


def test_tensors_of_another_shape_or_not_finite(llama, tmp_path):
    _, metadata, tensors = llama
    wrong = tensors | {"blk.1.ffn_up.weight": np.ones((32, 32), np.float32)}
    refused(write_gguf(tmp_path / "a.gguf", metadata, wrong), "layers/mlp/up/kernel of layer 1 has shape (32, 32)", "(32, 64)")
    wrong = tensors | {"blk.0.attn_q.weight": np.ones((30, 32), np.float32)}
    refused(write_gguf(tmp_path / "b.gguf", metadata, wrong), "blk.0.attn_q.weight has 30 rows")
    wrong = tensors | {"output_norm.weight": np.full(32, np.nan, np.float32)}
    refused(write_gguf(tmp_path / "c.gguf", metadata, wrong), "norm/scale holds NaN")


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        ({"llama.block_count": None}, ("llama.block_count is missing",)),
        ({"llama.attention.head_count_kv": [4, 4]}, ("head_count_kv", "one value a layer")),
        ({"llama.attention.head_count": 0.5}, ("head_count is 0.5", "whole number")),
        ({"llama.attention.head_count_kv": 3}, ("3 key-value heads",)),
        ({"llama.expert_count": 8}, ("llama.expert_count is 8",)),
        ({"llama.rope.scaling.type": "yarn"}, ("rope.scaling.type is 'yarn'", "'none' or 'linear'")),
        ({"llama.rope.dimension_count": 4}, ("rope.dimension_count is 4",)),
        ({"llama.attention.sliding_window": 64}, ("sliding_window",)),
        ({"tokenizer.ggml.model": "llama"}, ("tokenizer model 'llama'", "gpt2")),
        ({"tokenizer.ggml.pre": "tekken"}, ("pre-tokenizer 'tekken'", "smollm, llama-bpe, dbrx, qwen2")),
        ({"tokenizer.ggml.merges": None}, ("tokenizer.ggml.merges is missing", "list")),
        ({"tokenizer.ggml.merges": ["zz qq"]}, ("merges do not fit",)),
        ({"tokenizer.ggml.eos_token_id": 4000}, ("outside the 384 tokens",)),
        ({"tokenizer.chat_template": "{% for %}"}, ("chat template does not compile",)),
    ],
)
def test_metadata_that_is_not_supported(llama, change, fragments, tmp_path):
    _, metadata, tensors = llama
    refused(write_gguf(tmp_path / "m.gguf", metadata | change, tensors), *fragments)


def test_other_architectures_are_refused_by_name(llama, tmp_path):
    _, metadata, tensors = llama
    refused(write_gguf(tmp_path / "m.gguf", metadata, tensors, architecture="gemma2"), "'gemma2' is not supported", "llama, qwen2")


def test_gemma3_query_scale_is_known_by_the_number_of_layers(tmp_path):
    """No key says it: 256 is the head size of all but the 27B, which has 62 layers and 5376 / 32."""
    for layers, scalar in ((3, 16), (62, 8)):
        config = replace(load_model(str(FIXTURES / "tiny_gemma3")).config, num_layers=layers)
        assert FAMILIES["gemma3"].gguf_completes(config).query_scalar == scalar
