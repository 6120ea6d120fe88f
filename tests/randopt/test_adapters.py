"""Members as LoRA adapters: the adapter added to the base is the member's dense weights, in our arithmetic and in PEFT's."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.chapter import call
from support.logits import logits_of
from support.paths import FIXTURES
from support.searched import save_ensemble, searched_parts, searched_run

from perturbjax.errors import InputError
from perturbjax.noise import Noise, Population, Rule
from perturbjax.noise import perturb as eager_perturb
from perturbjax.pretrained import load_model
from perturbjax.pretrained.adapter_files import read_adapter, write_adapter
from perturbjax.randopt.adapters import exact_adapter, nearest_adapter
from perturbjax.randopt.ensemble import Ensemble, merge
from perturbjax.tree import leaf_paths

perturb = jax.jit(eager_perturb, static_argnames="noise")
MATRICES = (Rule("norm|embed|bias", None),)
POPULATION = Population(seed=3, size=8, sigmas=(0.02, 0.05), antithetic=True)


@pytest.fixture(scope="module")
def model():
    """With biases, and a tied head."""
    return load_model(str(FIXTURES / "tiny_qwen2"), "float32")


def assert_same(found, expected, tolerance: float) -> None:
    for path, leaf in leaf_paths(expected).items():
        np.testing.assert_allclose(leaf_paths(found)[path], leaf, rtol=0, atol=tolerance, err_msg=path)


def test_a_member_is_its_adapter_read_back_and_merged(model, tmp_path):
    noise = Noise("rademacher", 3, "rms", MATRICES)
    theta = perturb(model.params, POPULATION[5], noise=noise)
    made = exact_adapter(model, theta, POPULATION[[5]], noise)
    assert made.lora.rank == noise.rank and made.error < 1e-5 and made.left_out == ()
    lora, trained = read_adapter(write_adapter(made.lora, made.trained, model, tmp_path / "lora"), model)
    assert_same(lora.apply(model.params, trained), theta, 3e-7)


def test_a_merge_of_members_has_the_rank_of_all_of_them(model):
    noise, chosen = Noise(rank=2, rules=MATRICES), [6, 1, 4]
    theta = merge(model.params, POPULATION[chosen], noise)
    made = exact_adapter(model, theta, POPULATION[chosen], noise)
    assert made.lora.rank == 6 and made.error < 1e-5
    assert_same(made.lora.apply(model.params, made.trained), theta, 3e-7)


def test_the_error_is_that_of_the_dense_difference(model):
    theta = jax.tree.map(np.asarray, perturb(model.params, POPULATION[2], noise=Noise(rules=(Rule("embed", None),))))
    made = nearest_adapter(model, theta, 4)
    found = made.lora.apply(model.params, made.trained)
    lost, moved = (
        [np.sum((a - np.asarray(b)) ** 2) for a, b in zip(jax.tree.leaves(theta), jax.tree.leaves(w), strict=True)]
        for w in (found, model.params)
    )
    assert made.error == pytest.approx(np.sqrt(sum(lost) / sum(moved)), rel=1e-4)
    assert "norm/scale" in made.left_out and 0.5 < made.error < 1
    # No adapter of rank 4 is nearer to one matrix than its first 4 singular vectors.
    q = "layers/attention/q/kernel"
    step = leaf_paths(theta)[q] - leaf_paths(model.params)[q]
    kept = leaf_paths(found)[q] - leaf_paths(model.params)[q]
    np.testing.assert_allclose(
        np.linalg.norm(step - np.asarray(kept), axis=(1, 2)), np.sqrt((np.linalg.svd(step)[1][:, 4:] ** 2).sum(-1)), rtol=1e-4
    )


def test_in_bfloat16_the_error_is_the_rounding_of_the_member():
    model, noise = load_model(str(FIXTURES / "tiny_llama3"), "bfloat16"), Noise(rank=1, rules=MATRICES)
    theta = perturb(model.params, POPULATION[0], noise=noise)
    made = exact_adapter(model, theta, POPULATION[[0]], noise)
    assert 1e-4 < made.error < 0.1
    # Added in float32 and rounded once, as PEFT merges, it is the member that was scored but for ties of the rounding.
    same = [
        np.asarray(a == b).mean()
        for a, b in zip(jax.tree.leaves(made.lora.apply(model.params, made.trained)), jax.tree.leaves(theta), strict=True)
    ]
    assert min(same) > 0.999


def test_what_no_adapter_holds_is_refused(model):
    theta = jax.tree.map(lambda leaf: leaf + 1, model.params)
    with pytest.raises(InputError, match=r"also moves embed/embedding.*norm/scale"):
        exact_adapter(model, theta, POPULATION[[0]], Noise(rank=1))
    with pytest.raises(InputError, match="full rank"):
        exact_adapter(model, theta, POPULATION[[0]], Noise())
    with pytest.raises(InputError, match="`adapter_rank` 10000: at most"):
        nearest_adapter(model, theta, 10_000)
    with pytest.raises(InputError, match=r"of what moved \(norm/scale\) an adapter holds nothing"):
        nearest_adapter(model, model.params | {"norm": theta["norm"]}, 1)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft's use of transformers
def test_peft_computes_the_logits_of_the_member_and_merges_to_its_weights(model, tmp_path):
    torch, peft, transformers = map(pytest.importorskip, ("torch", "peft", "transformers"))
    noise = Noise(rank=2, rules=MATRICES)
    theta = perturb(model.params, POPULATION[3], noise=noise)
    made = exact_adapter(model, theta, POPULATION[[3]], noise)
    folder = write_adapter(made.lora, made.trained, model, tmp_path / "lora")
    base = transformers.AutoModelForCausalLM.from_pretrained(FIXTURES / model.name, dtype=torch.float32)
    tokens = np.random.default_rng(0).integers(5, 120, (2, 9))
    expected = np.stack(logits_of(dataclasses.replace(model, params=theta), tokens.tolist()))
    with torch.no_grad():
        adapted = peft.PeftModel.from_pretrained(base, folder)
        found = adapted(torch.tensor(tokens)).logits.numpy()
        merged = adapted.merge_and_unload()(torch.tensor(tokens)).logits.numpy()
    for logits in (found, merged):
        print(f"largest difference {np.abs(logits - expected).max() / np.abs(expected).max():.1e} of the largest logit")
        assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


def assert_vllm_takes(folder, max_lora_rank: int) -> None:
    """What vLLM 0.10 and later asks of an adapter before it loads it (``peft_helper.py``, ``utils.py``, ``lora_model.py``, all of its
    ``lora``): known features, a rank that the server was started for, and tensors of the target modules alone, by the names of PEFT."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["bias"] == "none"
    assert not (config["modules_to_save"] or config["use_dora"] or config.get("trainable_token_indices"))
    assert isinstance(config["r"], int) and 1 <= config["r"] <= max_lora_rank and config["lora_alpha"] > 0
    targets = config["target_modules"]
    # Where a matrix is part of a larger one in vLLM (qkv_proj, gate_up_proj), it is still named and given as in transformers.
    linear = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"}
    assert isinstance(targets, list) and targets and set(targets) <= linear
    tensors = load_file(folder / "adapter_model.safetensors")
    named = {re.fullmatch(r"base_model\.model\.(?:model\.layers\.\d+\.\w+\.)?(\w+)\.lora_([AB])\.weight", name) for name in tensors}
    assert None not in named and {match[1] for match in named if match} == set(targets)
    assert all(tensor.shape[0 if ".lora_A." in name else 1] == config["r"] for name, tensor in tensors.items())
    assert all(name.replace("lora_A", "lora_B") in tensors for name in tensors)


def test_the_command_writes_adapters_and_says_the_error(tmp_path, capsys):
    parts = searched_parts(tmp_path, rank=1, rules=MATRICES)
    directory, base = searched_run(parts, tmp_path / "run"), parts.model
    save_ensemble(parts, directory)
    run, ensemble = directory.path, Ensemble.load(directory.ensemble)
    for flags, members in ((["--rank", "2"], ensemble.members[1:2]), (["--merge"], ensemble.members)):
        out = tmp_path / flags[0]
        code, said, _ = call(["export", str(run), *flags, "--format", "peft", "--out", str(out)], capsys)
        assert code == 0 and f"as a PEFT adapter of rank {len(members)} of tiny_llama3" in said and "left out" not in said
        assert_vllm_takes(out, max_lora_rank=8)
        lora, trained = read_adapter(out, base)
        assert_same(lora.apply(base.params, trained), merge(base.params, ensemble.population[members], ensemble.noise), 1e-6)
    nearest = ["export", str(run), "--rank", "1", "--format", "peft", "--adapter-rank"]
    code, said, _ = call([*nearest, "1", "--out", str(tmp_path / "near")], capsys)  # what is of rank 1 is its own nearest
    assert code == 0 and float(said.split("error ")[1].split()[0]) < 1e-4
    for arguments, message in (
        (["--base", "--format", "peft"], "--format peft: the base is what"),
        (["--rank", "1", "--adapter-rank", "2"], "--adapter-rank 2: only an adapter has one; add --format peft"),
        ([*nearest[2:], "0"], "--adapter-rank 0: an integer of at least 1"),
    ):
        code, _, err = call(["export", str(run), *arguments, "--out", str(tmp_path / "new")], capsys)
        assert code == 2 and message in err and not (tmp_path / "new").exists()
