"""Hugging Face directories: values as stored, every option either understood or refused, damaged files named."""

import json
import pickle
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from support.tiny_gguf import FIXTURES

from perturbjax.errors import InputError
from perturbjax.models import param_shapes
from perturbjax.models.config import SlidingWindow
from perturbjax.pretrained import load_model
from perturbjax.pretrained.hf_config import decoder_config, llama3_rope_factors
from perturbjax.tree import leaf_paths

FIXTURE_NAMES = ["tiny_llama3", "tiny_llama_tied", "tiny_qwen2"]


def copy(fixture, folder):
    return shutil.copytree(FIXTURES / fixture, folder / fixture)


def edit_config(directory, **changes):
    path = directory / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "absent"}))
    return config


def refused(directory, *fragments):
    with pytest.raises(InputError) as caught:
        load_model(str(directory))
    message = str(caught.value)
    assert "\n" not in message and message.startswith(f"model '{directory}': ")
    for fragment in fragments:
        assert fragment in message


@pytest.mark.parametrize("fixture", FIXTURE_NAMES)
def test_values_and_layout(fixture):
    stored = {name: tensor for file in (FIXTURES / fixture).glob("*.safetensors") for name, tensor in load_file(file).items()}
    model = load_model(str(FIXTURES / fixture))
    params = leaf_paths(model.params)
    assert {path: value.shape for path, value in params.items()} == param_shapes(model.config)
    assert {value.dtype for value in params.values()} == {np.dtype(np.float32)}
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        np.testing.assert_array_equal(
            params["layers/mlp/down/kernel"][layer], stored[f"{prefix}.mlp.down_proj.weight"].astype(np.float32).T
        )
        np.testing.assert_array_equal(
            params["layers/attention/o/kernel"][layer], stored[f"{prefix}.self_attn.o_proj.weight"].astype(np.float32).T
        )
        np.testing.assert_array_equal(
            params["layers/mlp_norm/scale"][layer], stored[f"{prefix}.post_attention_layernorm.weight"].astype(np.float32)
        )
    np.testing.assert_array_equal(params["embed/embedding"], stored["model.embed_tokens.weight"].astype(np.float32))
    assert ("head/kernel" in params) == (fixture == "tiny_llama3") == (not model.config.tied_head)
    assert ("layers/attention/k/bias" in params) == (fixture == "tiny_qwen2")


def test_bfloat16_is_kept_bit_for_bit():
    narrow, wide = (leaf_paths(load_model(str(FIXTURES / "tiny_qwen2"), dtype).params) for dtype in ("bfloat16", "float32"))
    for path, value in narrow.items():
        assert value.dtype == "bfloat16"
        np.testing.assert_array_equal(value.astype(np.float32), wide[path])


def test_source_names_the_stored_precision():
    assert "BF16" in load_model(str(FIXTURES / "tiny_qwen2")).source
    assert "F32" in load_model(str(FIXTURES / "tiny_llama3")).source


def test_shards_give_the_same_model_as_one_file(tmp_path):
    whole = load_model(str(FIXTURES / "tiny_llama_tied"))
    directory = copy("tiny_llama_tied", tmp_path)
    tensors = {}
    for file in directory.glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    save_file({name: tensor.astype(np.float16) for name, tensor in tensors.items()}, directory / "model.safetensors")
    one = load_model(str(directory))
    for path, value in leaf_paths(whole.params).items():
        np.testing.assert_array_equal(leaf_paths(one.params)[path], value.astype(np.float16).astype(np.float32))


def test_rope_settings_of_transformers_4_and_5_mean_the_same(tmp_path):
    directory = copy("tiny_llama3", tmp_path)
    new = load_model(str(directory)).config
    scaling = json.loads((directory / "config.json").read_text())["rope_parameters"]
    theta = scaling.pop("rope_theta")
    edit_config(directory, rope_parameters="absent", rope_theta=theta, rope_scaling=scaling)
    assert load_model(str(directory)).config == new
    scaling["type"] = scaling.pop("rope_type")
    edit_config(directory, rope_scaling=scaling)
    assert load_model(str(directory)).config == new
    edit_config(directory, rope_scaling=None)
    assert load_model(str(directory)).config.rope_factors is None


def test_window_settings_of_transformers_4_and_5_mean_the_same(tmp_path):
    directory = copy("tiny_gemma3", tmp_path)
    new = load_model(str(directory)).config
    assert new.window == SlidingWindow(size=8, every=2, rope_theta=1e3) and new.rope_factors == (8.0,) * 8
    old = {"rope_theta": 1e4, "rope_local_base_freq": 1e3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    edit_config(directory, rope_parameters="absent", layer_types="absent", sliding_window_pattern=2, **old)
    assert load_model(str(directory)).config == new
    edit_config(directory, sliding_window_pattern="absent", sliding_window="absent", rope_local_base_freq="absent")
    assert load_model(str(directory)).config.window == SlidingWindow(size=4096, every=6, rope_theta=1e4)
    edit_config(directory, layer_types=["full_attention"] * 3)
    assert load_model(str(directory)).config.window is None


def test_llama3_factors_follow_the_published_rule():
    rope = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    expected = []
    for i in range(64):
        wavelength = 2 * np.pi * 500000.0 ** (2 * i / 128)
        if wavelength < 8192 / 4.0:
            expected.append(1.0)
        elif wavelength > 8192 / 1.0:
            expected.append(8.0)
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            expected.append(1 / ((1 - smooth) / 8.0 + smooth))
    np.testing.assert_allclose(llama3_rope_factors(500000.0, 128, rope), expected, rtol=1e-12)


def test_absent_keys_get_the_defaults_of_transformers(tmp_path):
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 10, "intermediate_size": 8}
    llama = decoder_config(sizes | {"architectures": ["LlamaForCausalLM"]})
    assert (llama.num_kv_heads, llama.head_dim, llama.rope_theta, llama.norm_eps, llama.max_positions) == (4, 16, 10000.0, 1e-6, 2048)
    assert not llama.tied_head and not llama.qkv_bias
    assert decoder_config(sizes | {"model_type": "llama", "num_key_value_heads": None, "head_dim": None}) == llama
    qwen = decoder_config(sizes | {"architectures": ["Qwen2ForCausalLM"], "num_attention_heads": 32, "num_key_value_heads": 32})
    assert qwen.qkv_bias and qwen.max_positions == 32768


def test_unused_sliding_window_is_no_obstacle(tmp_path):
    directory = copy("tiny_qwen2", tmp_path)
    expected = load_model(str(directory)).config
    edit_config(directory, sliding_window=16, use_sliding_window=False)
    assert load_model(str(directory)).config == expected
    edit_config(directory, layer_types="absent", use_sliding_window=True, max_window_layers=2)
    assert load_model(str(directory)).config == expected


@pytest.mark.parametrize(
    ("fixture", "changes", "fragments"),
    [
        ("tiny_llama3", {"architectures": ["GemmaForCausalLM"]}, ("GemmaForCausalLM", "LlamaForCausalLM, Qwen2ForCausalLM")),
        ("tiny_llama3", {"architectures": None, "model_type": "mamba"}, ("'mamba'", "LlamaForCausalLM")),
        ("tiny_llama3", {"hidden_act": "gelu"}, ("hidden_act 'gelu'", "silu")),
        ("tiny_llama3", {"attention_bias": True}, ("attention_bias",)),
        ("tiny_llama3", {"mlp_bias": True}, ("mlp_bias",)),
        ("tiny_llama3", {"quantization_config": {"quant_method": "gptq"}}, ("quantization_config", "GGUF")),
        ("tiny_llama3", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, ("'yarn'", "'llama3'")),
        ("tiny_llama3", {"rope_parameters": {"rope_type": "llama3", "factor": 4.0}}, ("low_freq_factor is missing",)),
        ("tiny_llama3", {"rope_parameters": 3}, ("rope_parameters 3",)),
        ("tiny_llama3", {"rope_scaling": {"type": "yarn"}}, ("'yarn'", "'llama3'")),
        ("tiny_llama3", {"rope_scaling": {"rope_type": "default", "factor": 2.0}}, ("'default', 'linear', 'llama3'",)),
        ("tiny_llama3", {"rope_parameters": {"rope_type": "default", "type": "yarn", "rope_theta": 1e4}}, ("'yarn'",)),
        ("tiny_llama3", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "factor": 4.0}}, ("'default' with 'factor'",)),
        ("tiny_llama3", {"rope_parameters": {"rope_type": ["yarn"], "rope_theta": 1e4}}, ("yarn",)),
        ("tiny_llama3", {"rope_parameters": {"rope_theta": 10**400}}, ("rope_theta 1000", "a positive number")),
        ("tiny_llama3", {"rms_norm_eps": 10**400}, ("rms_norm_eps 1000", "a positive number")),
        ("tiny_llama3", {"partial_rotary_factor": 0.5}, ("partial_rotary_factor 0.5",)),
        ("tiny_llama3", {"hidden_size": "absent"}, ("hidden_size is missing",)),
        ("tiny_llama3", {"num_hidden_layers": 0}, ("num_hidden_layers 0",)),
        ("tiny_llama3", {"num_hidden_layers": 1000}, ("1000 layers", "21 tensors")),
        ("tiny_llama3", {"num_key_value_heads": 3}, ("3 key-value heads",)),
        ("tiny_llama3", {"rms_norm_eps": "small"}, ("rms_norm_eps 'small'",)),
        ("tiny_llama3", {"num_hidden_layers": 3}, ("model.layers.2.", "missing")),
        ("tiny_llama3", {"num_hidden_layers": 1}, ("model.layers.1.", "not part of a plain llama decoder")),
        ("tiny_llama3", {"intermediate_size": 65}, ("layers/mlp/gate/kernel of layer 0 has shape (32, 64)", "(32, 65)")),
        ("tiny_llama3", {"vocab_size": 100}, ("embed/embedding",)),
        ("tiny_qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, ("sliding window",)),
        ("tiny_qwen2", {"layer_types": "absent", "use_sliding_window": True, "max_window_layers": 1}, ("sliding window",)),
        ("tiny_qwen2", {"tie_word_embeddings": False}, ("lm_head.weight", "missing")),
        ("tiny_qwen2", {"eos_token_id": "two"}, ("eos_token_id 'two'",)),
        ("tiny_gemma3", {"final_logit_softcapping": 30.0}, ("final_logit_softcapping 30.0", "null")),
        ("tiny_gemma3", {"attn_logit_softcapping": 50.0}, ("attn_logit_softcapping 50.0", "null")),
        ("tiny_gemma3", {"use_bidirectional_attention": True}, ("use_bidirectional_attention True", "false")),
        ("tiny_gemma3", {"hidden_activation": "gelu"}, ("hidden_activation 'gelu'", "gelu_pytorch_tanh")),
        ("tiny_gemma3", {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}, ("layer_types", "every n-th")),
        ("tiny_gemma3", {"layer_types": "absent", "sliding_window_pattern": 0}, ("sliding_window_pattern 0",)),
        ("tiny_gemma3", {"rope_parameters": {"rope_type": "default"}}, ("rope_parameters", "sliding_attention")),
        ("tiny_gemma3", {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}}, ("layers that slide",)),
        ("tiny_gemma3", {"query_pre_attn_scalar": -1}, ("query_pre_attn_scalar -1",)),
        ("tiny_qwen3", {"use_sliding_window": True, "layer_types": "absent", "max_window_layers": 0}, ("sliding window",)),
        ("tiny_olmo2", {"attention_bias": True}, ("attention_bias",)),
        ("tiny_qwen3_moe", {"norm_topk_prob": False}, ("norm_topk_prob False", "true")),
        ("tiny_qwen3_moe", {"norm_topk_prob": "absent"}, ("norm_topk_prob", "true")),
        ("tiny_qwen3_moe", {"mlp_only_layers": [0]}, ("mlp_only_layers [0]", "empty")),
        ("tiny_qwen3_moe", {"decoder_sparse_step": 2}, ("decoder_sparse_step 2", "1")),
        ("tiny_qwen3_moe", {"num_experts_per_tok": 9}, ("experts of a token: 9", "at most 8")),
        ("tiny_qwen3_moe", {"num_local_experts": 10**8}, ("2 layers of 100000000 experts",)),
        ("tiny_qwen3_moe", {"num_local_experts": 7}, ("experts.7", "not part of a plain qwen3moe")),
    ],
)
def test_config_that_is_not_supported(fixture, changes, fragments, tmp_path):
    directory = copy(fixture, tmp_path)
    edit_config(directory, **changes)
    refused(directory, *fragments)


@pytest.mark.parametrize("fraction", [0.0, 0.00002, 0.001, 0.5, 0.9999])
@pytest.mark.parametrize("file", ["model.safetensors", "model-00002-of-00003.safetensors"])
def test_cut_off_weights(file, fraction, tmp_path):
    directory = copy("tiny_llama3" if file == "model.safetensors" else "tiny_llama_tied", tmp_path)
    whole = (directory / file).read_bytes()
    (directory / file).write_bytes(whole[: int(len(whole) * fraction)])
    refused(directory, file, "cut off")


def test_wrong_magic(tmp_path):
    directory = copy("tiny_llama3", tmp_path)
    (directory / "model.safetensors").write_bytes(b"PK\x03\x04" + bytes(5000))
    refused(directory, "model.safetensors", "no safetensors file")


@given(data=st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_header_is_refused_or_harmless(data, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(FIXTURES / "tiny_qwen2", directory, dirs_exist_ok=True)
    file = directory / "model.safetensors"
    content = bytearray(file.read_bytes())
    at = data.draw(st.integers(0, 8 + int.from_bytes(content[:8], "little") - 1))
    content[at] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    try:
        load_model(str(directory))
    except InputError as error:
        assert "\n" not in str(error) and str(directory) in str(error)


def test_index_that_lies(tmp_path):
    directory = copy("tiny_llama_tied", tmp_path)
    (directory / "model-00003-of-00003.safetensors").unlink()
    refused(directory, "model-00003-of-00003.safetensors", "missing")
    index = directory / "model.safetensors.index.json"
    good = json.loads(index.read_text())
    bad = good["weight_map"] | {"model.norm.weight": "../elsewhere.safetensors"}
    index.write_text(json.dumps({"weight_map": bad}))
    refused(directory, "'../elsewhere.safetensors'", "not a file name")
    index.write_text("{}")
    refused(directory, "no weight_map")
    index.write_text(index.read_text() + "]")
    refused(directory, "model.safetensors.index.json cannot be read")


def test_tensor_named_by_the_index_alone(tmp_path):
    directory = copy("tiny_llama_tied", tmp_path)
    index = directory / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    value["weight_map"]["ghost"] = "model-00001-of-00003.safetensors"
    index.write_text(json.dumps(value))
    refused(directory, "ghost")


def test_weights_that_are_not_numbers_or_not_floats(tmp_path):
    directory = copy("tiny_llama3", tmp_path)
    tensors = load_file(directory / "model.safetensors")
    save_file(tensors | {"model.norm.weight": np.full(32, np.inf, np.float32)}, directory / "model.safetensors")
    refused(directory, "norm/scale holds NaN or infinity")
    save_file(tensors | {"model.norm.weight": np.ones(32, np.int32)}, directory / "model.safetensors")
    refused(directory, "model.norm.weight is I32")


def test_pickles_are_never_read(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was loaded",))

    directory = copy("tiny_llama3", tmp_path)
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    refused(directory, "pytorch_model.bin is a pickle", "convert it to safetensors")
    (directory / "pytorch_model.bin").unlink()
    refused(directory, "neither model.safetensors nor")


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_missing_and_broken_json(file, tmp_path):
    directory = copy("tiny_llama3", tmp_path)
    text = (directory / file).read_text()
    (directory / file).write_text(text[: len(text) // 2])
    refused(directory, f"{file} cannot be read")
    (directory / file).write_text("[1]")
    refused(directory, file)
    (directory / file).unlink()
    refused(directory, f"{file} is missing")


WEIRD = st.sampled_from([None, "x", "", -1, 0, 3, 10**12, 0.5, True, [], [1], ["x"], {}, {"x": 1}, {"content": 5}])


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_json_of_the_wrong_kind_is_refused_or_harmless(data, tmp_path):
    """Whatever value stands under whatever key: a model, or one clear line. Never another exception."""
    fixture = data.draw(st.sampled_from(["tiny_llama3", "tiny_qwen2"]))
    directory = tmp_path / fixture
    shutil.copytree(FIXTURES / fixture, directory, dirs_exist_ok=True)
    if data.draw(st.booleans()):
        (directory / "chat_template.jinja").unlink()
    file = data.draw(st.sampled_from(["config.json", "config.json", "tokenizer_config.json", "generation_config.json"]))
    value = json.loads((directory / file).read_text())
    more = ["rope_scaling", "chat_template", "add_bos_token", "eos_token", "use_sliding_window", "layer_types", "partial_rotary_factor"]
    for key in data.draw(st.lists(st.sampled_from(sorted(value.keys() | set(more))), min_size=1, max_size=3)):
        value[key] = data.draw(WEIRD)
    (directory / file).write_text(json.dumps(value))
    try:
        load_model(str(directory))
    except InputError as error:
        assert "\n" not in str(error) and str(directory) in str(error)
