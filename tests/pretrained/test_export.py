"""Export: what is written loads again, here and in transformers, as the same model."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.logits import logits_of
from support.paths import FIXTURES, TINY_MODELS
from support.tiny_gguf import gguf_metadata, gguf_tensors, write_gguf

from perturbjax.errors import InputError
from perturbjax.pretrained import export as export_module
from perturbjax.pretrained import load_model
from perturbjax.pretrained.export import export_safetensors
from perturbjax.pretrained.hf_config import decoder_config, same_factors
from perturbjax.tasks.base import Prompt
from perturbjax.tree import leaf_paths

FIXTURE_NAMES = ["tiny_llama3", "tiny_llama_tied", "tiny_qwen2"]
ROWS = [[5, 9, 200, 31, *range(40, 60)], [7, 8]]
STORED: dict[str, str] = {name: "bfloat16" for name in TINY_MODELS if name.startswith(("tiny_qwen", "tiny_gemma"))}


def moved(model):
    """The model with other weights, as jax arrays: what a search exports."""
    return replace(model, params=jax.tree.map(lambda leaf: jnp.asarray(leaf) * 1.25, model.params))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fixture", FIXTURE_NAMES)
def test_round_trip_is_exact(fixture, dtype, tmp_path):
    model = moved(load_model(str(FIXTURES / fixture), dtype))
    out = export_safetensors(model, model.params, tmp_path / "a" / "out")
    again = load_model(str(out), dtype)
    assert again.config == model.config
    for path, value in leaf_paths(model.params).items():
        got = leaf_paths(again.params)[path]
        assert got.dtype == np.asarray(value).dtype
        np.testing.assert_array_equal(got, np.asarray(value))
    with jax.numpy_dtype_promotion("standard"):  # flax's RMSNorm multiplies float32 with a bfloat16 scale
        for left, right in zip(logits_of(model, ROWS), logits_of(again, ROWS), strict=True):
            np.testing.assert_array_equal(left, right)
    assert {path.name for path in out.parent.iterdir()} == {"out"}


@pytest.mark.parametrize("fixture", TINY_MODELS)
def test_tensors_keep_the_names_and_orientation_of_transformers(fixture, tmp_path):
    model = load_model(str(FIXTURES / fixture), STORED.get(fixture, "float32"))
    out = export_safetensors(model, model.params, tmp_path / "out")
    original = {name: tensor for file in (FIXTURES / fixture).glob("*.safetensors") for name, tensor in load_file(file).items()}
    written = load_file(out / "model.safetensors")
    assert written.keys() == original.keys()
    for name, tensor in original.items():
        assert written[name].dtype == tensor.dtype
        np.testing.assert_array_equal(written[name], tensor)


@pytest.mark.parametrize("source", ["tiny_llama3", "tiny_qwen2", "smollm2-135m"])
def test_the_tokenizer_comes_along(source, tmp_path):
    smollm2 = source == "smollm2-135m"
    model = load_model(source if smollm2 else str(FIXTURES / source))
    reference = json.loads((FIXTURES / ("smollm2_reference.json" if smollm2 else f"{source}/reference.json")).read_text())
    again = load_model(str(export_safetensors(model, model.params, tmp_path / "out"))).tokenizer
    assert (again.stop_ids, again.pad_id, again.bos_id) == (model.tokenizer.stop_ids, model.tokenizer.pad_id, model.tokenizer.bos_id)
    for row in reference["texts"]:
        assert again.encode_prompts([Prompt((), row["text"])])[0] == row["prompt_ids"]
    for row in reference["chats"]:
        assert again.encode_prompts([Prompt(tuple(row["messages"]))])[0] == row["ids"]


def test_shards(tmp_path):
    model = load_model(str(FIXTURES / "tiny_llama3"))
    out = export_safetensors(model, model.params, tmp_path / "out", shard_bytes=60_000)
    files = sorted(out.glob("model-*.safetensors"))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(files) >= 3 and not (out / "model.safetensors").exists()
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for file in files for tensor in load_file(file).values())
    again = leaf_paths(load_model(str(out)).params)
    assert all(np.array_equal(again[path], value) for path, value in leaf_paths(model.params).items())


def test_gguf_with_llama3_scaling(tmp_path):
    """Rotary factors from a GGUF file become the scaling that config.json knows; others cannot be said there."""
    released = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    metadata, tensors = gguf_metadata("tiny_llama_tied"), gguf_tensors("tiny_llama_tied")
    factors = np.asarray(decoder_config(_llama(released)).rope_factors, np.float32)
    assert factors.max() == 32.0
    metadata["llama.rope.freq_base"] = 1e8
    model = load_model(str(write_gguf(tmp_path / "a.gguf", metadata, tensors | {"rope_freqs.weight": factors})))
    out = export_safetensors(model, model.params, tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["rope_scaling"] == {"rope_type": "llama3"} | released
    assert same_factors(load_model(str(out)).config.rope_factors, model.config.rope_factors)
    model = load_model(str(write_gguf(tmp_path / "b.gguf", metadata, tensors | {"rope_freqs.weight": factors + 1})))
    with pytest.raises(InputError, match=r"^model 'b': cannot be exported: its rotary factors"):
        export_safetensors(model, model.params, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def _llama(rope):
    raw = json.loads((FIXTURES / "tiny_llama_tied" / "config.json").read_text())
    return raw | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e8} | rope}


@pytest.mark.parametrize(
    ("fixture", "dtype"),
    [(name, STORED.get(name, "float32")) for name in TINY_MODELS],
)
def test_transformers_reads_the_same_model(fixture, dtype, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = moved(load_model(str(FIXTURES / fixture), dtype))
    out = export_safetensors(model, model.params, tmp_path / "out", shard_bytes=60_000)
    assert str(transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype) == f"torch.{dtype}"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ours = load_model(str(out), "float32")
    for row, logits in zip(ROWS, logits_of(ours, ROWS), strict=True):
        with torch.no_grad():
            expected = theirs(torch.tensor([row])).logits[0].numpy()
        error = np.abs(logits - expected).max() / np.abs(expected).max()
        print(f"{fixture}: largest difference {error:.1e} of the largest logit, {len(row)} tokens")
        assert error < 1e-5
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    messages = [{"role": "system", "content": "One word."}, {"role": "user", "content": "It's 12, don't you think?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == model.tokenizer.encode_prompts([Prompt(tuple(messages))])[0]
    assert theirs.generation_config.eos_token_id == list(model.tokenizer.stop_ids)


def test_a_directory_in_use_is_refused(tmp_path):
    model = load_model(str(FIXTURES / "tiny_qwen2"))
    (tmp_path / "mine").write_text("x")
    with pytest.raises(InputError, match=r"^out_dir '.*': exists and is not an empty directory"):
        export_safetensors(model, model.params, tmp_path)
    with pytest.raises(InputError, match=r"^out_dir '.*': exists and is not an empty directory"):
        export_safetensors(model, model.params, tmp_path / "mine")
    with pytest.raises(InputError, match=r"^out_dir '.*': cannot be created"):
        export_safetensors(model, model.params, tmp_path / "mine" / "below")
    (tmp_path / "empty").mkdir()
    assert (export_safetensors(model, model.params, tmp_path / "empty") / "config.json").is_file()


def test_nothing_half_written(tmp_path, monkeypatch):
    model = load_model(str(FIXTURES / "tiny_qwen2"))

    def full_disk(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_module, "_write_json", full_disk)
    with pytest.raises(OSError, match="No space left"):
        export_safetensors(model, model.params, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_params_that_do_not_fit(tmp_path):
    model = load_model(str(FIXTURES / "tiny_qwen2"))
    with pytest.raises(ValueError, match="norm/scale is None"):
        export_safetensors(model, {key: value for key, value in model.params.items() if key != "norm"}, tmp_path / "out")
    with pytest.raises(ValueError, match=r"float16"):
        export_safetensors(model, jax.tree.map(lambda leaf: leaf.astype(np.float16), model.params), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_export_never_changes_the_model(tmp_path):
    model = load_model(str(FIXTURES / "tiny_llama3"))
    before = {path: value.copy() for path, value in leaf_paths(model.params).items()}
    hf_config = json.dumps(model.hf_config)
    export_safetensors(model, model.params, tmp_path / "out")
    assert all(np.array_equal(before[path], value) for path, value in leaf_paths(model.params).items())
    assert json.dumps(model.hf_config) == hf_config


def test_exports_follow_the_umask(tmp_path):
    model = load_model(str(FIXTURES / "tiny_qwen2"))
    out = tmp_path / "out"
    script = (
        "import os, sys; os.umask(0o027); from perturbjax.pretrained import load_model;"
        "from perturbjax.pretrained.export import export_safetensors;"
        "m = load_model(sys.argv[1]); export_safetensors(m, m.params, sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", script, str(FIXTURES / model.name), str(out)], check=True)
    assert oct(out.stat().st_mode & 0o777) == "0o750"
    assert {oct(path.stat().st_mode & 0o777) for path in out.iterdir()} == {"0o640"}
    shutil.rmtree(out)
