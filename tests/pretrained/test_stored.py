"""Parameters that stay in their file: a slice equals that slice of the loaded array, and errors name the file."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.paths import FIXTURES
from support.tiny_gguf import gguf_metadata, gguf_tensors, write_gguf

from perturbjax.errors import InputError
from perturbjax.models.partition import partition
from perturbjax.noise import Noise, coverage
from perturbjax.pretrained import load_model
from perturbjax.tree import fingerprint, leaf_paths


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
    for path, sharded in parallel.dims(whole.config).items():
        leaf = leaf_paths(whole.params)[path]
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
