"""Adapters against dense one-liners: W + s A B, a loop over adapters, whole matrices on one device; and PEFT's files."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from support.paths import FIXTURES

from perturbjax import sharding
from perturbjax.errors import InputError
from perturbjax.models.adapter_layers import bottleneck
from perturbjax.models.adapter_rules import Leaves
from perturbjax.models.adapters import BLOCK_ENDS, Bottleneck, LoRA, Partial, bitfit, distance, full, head, of_decoder, trainable_count
from perturbjax.models.attention import causal_mask
from perturbjax.models.config import untied
from perturbjax.models.partition import TensorParallel
from perturbjax.pretrained import load_model
from perturbjax.pretrained.adapter_files import CONFIG, WEIGHTS, read_adapter, write_adapter
from perturbjax.runs.files import MetricsLog
from perturbjax.train import Training
from perturbjax.train.loop import fit
from perturbjax.train.problem import Problem
from perturbjax.tree import fingerprint, leaf_paths, nest

ADAPTERS = {
    "lora": LoRA(rank=3, alpha=6),
    "bottleneck": Bottleneck(size=4),
    "partial": Partial((Leaves("mlp/up", train=False), "mlp", "norm/scale$")),
    "bitfit": bitfit(),
    "full": full(),
}
TOKENS = np.random.default_rng(0).integers(5, 120, (2, 9))


@pytest.fixture(scope="module")
def model():
    return load_model(str(FIXTURES / "tiny_qwen2"))


def logits_fn(config):
    def logits(params, tokens):
        decoder = config.build(params)
        b, t = tokens.shape
        hidden, _ = decoder(tokens, jnp.broadcast_to(jnp.arange(t)[None], (b, t)), causal_mask(jnp.ones((b, t), bool)))
        return decoder.logits(hidden)

    return logits


@functools.cache
def compiled(config):
    return jax.jit(logits_fn(config))


def moved(tree, seed=0, size=0.1):
    """The tree with every leaf drawn anew, so that no factor is zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(size * rng.standard_normal(leaf.shape), jnp.float32), tree)


@pytest.mark.parametrize("name", ADAPTERS)
def test_at_the_start_the_base_is_there_to_the_bit_and_is_never_written(model, name):
    before, adapter = fingerprint(model.params), ADAPTERS[name]
    trained = adapter.init(model.params, 0)
    assert {leaf.dtype for leaf in jax.tree.leaves(trained)} == {jnp.dtype("float32")}
    logits = compiled(model.config)
    np.testing.assert_array_equal(logits(adapter.attach(model.params, trained), TOKENS), logits(model.params, TOKENS))
    if name != "bottleneck":
        assert fingerprint(adapter.apply(model.params, trained)) == before
    assert float(adapter.norm(model.params, trained)) == 0
    changed = adapter.attach(model.params, moved(trained))
    assert np.abs(logits(changed, TOKENS) - logits(model.params, TOKENS)).max() > 1e-3
    assert fingerprint(model.params) == before
    assert float(distance(trained, trained)) == 0 < float(distance(trained, moved(trained)))


def test_negative_zeros_of_a_base_stay():
    params = {"kernel": jnp.full((4, 4), -0.0, jnp.bfloat16)}
    lora = LoRA(2, rules=("kernel",))
    found = lora.apply(params, lora.init(params, 0))["kernel"]
    assert np.signbit(np.asarray(found, np.float32)).all()


def test_lora_is_w_plus_s_a_b_and_unmerges(model):
    lora = LoRA(rank=3, alpha=6)
    trained = moved(lora.init(model.params, 1))
    flat, base, found = (leaf_paths(tree) for tree in (trained, model.params, lora.apply(model.params, trained)))
    adapted = {path[:-2] for path in flat}
    assert adapted == {
        *(f"layers/attention/{name}/kernel" for name in "qkvo"),
        *(f"layers/mlp/{name}/kernel" for name in ("gate", "up", "down")),
    }
    changes = []
    for path, leaf in base.items():
        change = 2 * np.einsum("lir,lro->lio", flat[f"{path}/a"], flat[f"{path}/b"]) if path in adapted else np.float32(0)
        np.testing.assert_allclose(found[path], leaf + change, rtol=1e-6, atol=1e-6)
        changes.append(np.square(change).sum())
    np.testing.assert_allclose(float(lora.norm(model.params, trained)), np.sqrt(np.sum(changes)), rtol=1e-5)
    back = leaf_paths(lora.unmerge(lora.apply(model.params, trained), trained))
    for path, leaf in base.items():
        np.testing.assert_allclose(back[path], leaf, rtol=0, atol=1e-6)
    assert trainable_count(trained) == sum(3 * model.config.num_layers * (base[p].shape[1] + base[p].shape[2]) for p in adapted)


def test_attached_equals_merged_with_its_gradients_for_many_adapters_at_once(model):
    lora, logits, count = LoRA(rank=2), logits_fn(model.config), 3
    start = lora.init(model.params, 0)
    many = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(moved(start, seed) for seed in range(count)))

    def loss(way):
        return lambda trained: jnp.square(logits(way(model.params, trained), TOKENS)).mean()

    values, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss(lora.attach))))(many)
    alone = jax.jit(jax.value_and_grad(loss(lora.apply)))
    for i in range(count):
        expected = alone(jax.tree.map(lambda leaf, i=i: leaf[i], many))
        np.testing.assert_allclose(values[i], expected[0], rtol=1e-5)
        for path, leaf in leaf_paths(expected[1]).items():
            np.testing.assert_allclose(leaf_paths(gradients)[path][i], leaf, rtol=2e-3, atol=1e-6 + 1e-4 * float(np.abs(leaf).max()))


def test_experts_have_no_place_for_an_adapter_and_attention_beside_them_has():
    experts = load_model(str(FIXTURES / "tiny_qwen3_moe"))
    tokens = jnp.arange(4)[None]

    def logits(params):
        decoder = experts.config.build(params)
        hidden, _ = decoder(tokens, tokens, causal_mask(jnp.ones(tokens.shape, bool)))
        return decoder.logits(hidden)

    lora = LoRA(2, rules=of_decoder(experts.config))
    start = lora.init(experts.params, 0)
    assert len(leaf_paths(start)) == 8 and all(path.startswith("layers/attention/") for path in leaf_paths(start))
    moved = jax.tree.map(lambda leaf: leaf + 0.05, start)
    attached, merged = (jax.jit(logits)(verb(experts.params, moved)) for verb in (lora.attach, lora.apply))
    np.testing.assert_allclose(attached, merged, rtol=1e-4, atol=1e-4)
    ends = Bottleneck(4, of_decoder(experts.config, BLOCK_ENDS))
    assert all(path.startswith("layers/attention/o/") for path in leaf_paths(ends.init(experts.params, 0)))


def test_no_matrix_of_the_size_of_a_change_is_made(model):
    lora = LoRA(rank=2)
    trained = lora.init(model.params, 0)
    kernel = model.params["layers"]["mlp"]["up"]["kernel"].shape[1:]

    def made(way):
        """Products whose result has the shape of a kernel, also in the programs inside."""
        text = str(jax.make_jaxpr(lambda trained: logits_fn(model.config)(way(model.params, trained), TOKENS))(trained))
        shape = ",".join(map(str, kernel))
        return sum("dot_general" in line and f"{shape}] = dot_general" in line for line in text.splitlines())

    assert made(lora.attach) == 0 < made(lora.apply)


@pytest.mark.parametrize("name", ["lora", "bottleneck"])
def test_tensor_parallel_blocks_give_the_logits_of_one_device(name):
    model = load_model(str(FIXTURES / "tiny_llama_tied"))
    adapter, parallel = ADAPTERS[name], model.config.partition(2)
    assert parallel is not None and parallel == TensorParallel(2, True, True)
    params = adapter.attach(model.params, moved(adapter.init(model.params, 0)))
    whole = compiled(model.config)(params, TOKENS)
    dims = parallel.dims(model.config)
    blocks = []
    for device in range(2):
        local = {}
        for path, leaf in leaf_paths(params).items():
            index = [slice(None)] * leaf.ndim
            if path in dims:
                start = dims[path].offsets[device]
                index[dims[path].dim] = slice(start, start + dims[path].size)
            local[path] = jnp.asarray(leaf)[tuple(index)]
        blocks.append(nest(local))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)

    def one(params):
        decoder = model.config.build(params, parallel)
        b, t = TOKENS.shape
        hidden, _ = decoder(jnp.asarray(TOKENS), jnp.broadcast_to(jnp.arange(t)[None], (b, t)), causal_mask(jnp.ones((b, t), bool)))
        return decoder.logits(hidden)

    found = jax.jit(jax.vmap(one, axis_name=sharding.MODEL))(stacked)
    np.testing.assert_allclose(jnp.concatenate([*found], axis=-1)[..., : whole.shape[-1]], whole, rtol=2e-4, atol=2e-5)


def test_the_loop_trains_what_an_adapter_trains_alone(tmp_path):
    """Regression with a matrix that differs from the base's by one of rank 1, which LoRA of rank 1 finds."""
    rng = np.random.default_rng(0)
    w, u, v, x = (rng.standard_normal(shape).astype(np.float32) for shape in ((6, 4), (6, 1), (1, 4), (32, 6)))
    lora, base = LoRA(rank=1, alpha=1, rules=("kernel",)), {"kernel": w, "frozen": np.ones(3, np.float32)}

    def loss(trained, frozen, batch):
        error = jnp.square(batch["x"] @ lora.apply(frozen, trained)["kernel"] - batch["y"]).sum()
        return {"loss": error, "weight": jnp.float32(batch["x"].size)}

    rows = ArrayRows({"x": x, "y": x @ (w + u @ v)})
    mesh = sharding.make_mesh()
    frozen, start = sharding.put_replicated(base, mesh), lora.init(base, 0)
    before = fingerprint(frozen)
    training = Training(steps=60, batch_rows=32, every=30, learning_rate=0.1, schedule="constant", weight_decay=0.0)
    (tmp_path / "run").mkdir()
    moments = []
    metrics = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    fitted = fit(
        Problem(start, [(loss, frozen)], rows),
        training,
        0,
        tmp_path / "run",
        {"test": 1},
        mesh,
        metrics,
        on_state=lambda state: moments.extend(jax.tree.leaves(state.tree["state"]["optimizer"])),
    )
    assert fitted.looks[-1].losses["loss"] < 0.1 * fitted.looks[0].losses["loss"]
    assert {leaf.shape for leaf in moments} <= {(), (6, 1), (1, 4)}, "the base has no optimizer state"
    assert fingerprint(frozen) == before
    np.testing.assert_allclose(lora.norm(base, fitted.params), np.linalg.norm(u @ v), rtol=0.2)


class ArrayRows:
    """Rows of plain arrays."""

    tokens = 0

    def __init__(self, arrays):
        self.arrays = arrays | {"segments": np.zeros((len(arrays["x"]), 1), np.int32)}

    def __len__(self):
        return len(self.arrays["x"])

    def batch(self, numbers):
        return {name: array[numbers] for name, array in self.arrays.items()}


def test_a_plain_function_with_any_method():
    """Keys of a list, a convolution and a dense layer: LoRA's change of a convolution is a narrow one followed by one of 1 x 1."""
    rng = np.random.default_rng(0)
    params = {
        "stages": [{"kernel": jnp.asarray(rng.standard_normal((3, 3, 2, 4)), jnp.float32), "bias": jnp.ones(4)}],
        "dense": {"kernel": jnp.asarray(rng.standard_normal((4, 5)), jnp.float32), "bias": jnp.ones(5)},
        "steps": jnp.int32(3),
    }
    images = jnp.asarray(rng.standard_normal((2, 6, 6, 2)), jnp.float32)

    def conv(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    lora = LoRA(rank=2, alpha=1, rules=("kernel$",))
    trained = moved(lora.init(params, 0))
    factors = trained["stages"]["0"]["kernel"]
    assert (factors["a"].shape, factors["b"].shape) == ((3, 3, 2, 2), (2, 4))
    found = conv(images, lora.apply(params, trained)["stages"][0]["kernel"])
    expected = conv(images, params["stages"][0]["kernel"]) + 0.5 * conv(images, factors["a"]) @ factors["b"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert list(leaf_paths(full().init(params, 0))) == ["dense/bias", "dense/kernel", "stages/0/bias", "stages/0/kernel"]
    assert full().apply(params, full().init(params, 0))["steps"] == 3

    dense = {"dense": params["dense"]}
    adapter = Bottleneck(size=2, rules=("dense/kernel",))
    start = adapter.init(dense, 0)
    y = jnp.asarray(rng.standard_normal((3, 5)), jnp.float32)
    np.testing.assert_array_equal(bottleneck(adapter.apply(dense, start)["dense"], y), y)
    np.testing.assert_array_equal(bottleneck(dense["dense"], y), y)
    other = moved(start)
    down, up = other["dense"]["kernel"]["down"], other["dense"]["kernel"]["up"]
    expected = y + jax.nn.gelu(y @ down["kernel"] + down["bias"][None]) @ up["kernel"] + up["bias"][None]
    np.testing.assert_allclose(bottleneck(adapter.apply(dense, other)["dense"], y), expected, rtol=1e-5, atol=1e-6)


def test_flax_states_are_pytrees_like_others():
    module = nnx.Sequential(nnx.Linear(4, 6, rngs=nnx.Rngs(0)), nnx.Linear(6, 2, rngs=nnx.Rngs(1)))
    graphdef, state = nnx.split(module)
    lora = LoRA(rank=2, alpha=2, rules=("kernel",))
    trained = moved(lora.init(state, 0))
    x = jnp.ones((1, 4))
    found = nnx.merge(graphdef, lora.apply(state, trained))(x)
    by_hand = x
    for layer, factors in zip(module.layers, leaf_pairs(trained), strict=True):
        by_hand = by_hand @ (layer.kernel[...] + factors[0] @ factors[1]) + layer.bias[...][None]
    np.testing.assert_allclose(found, by_hand, rtol=1e-5)
    assert trainable_count(bitfit().init(state, 0)) == 8


def leaf_pairs(trained):
    flat = leaf_paths(trained)
    return [(flat[path], flat[path[:-1] + "b"]) for path in flat if path.endswith("/a")]


def test_a_tied_decoder_gets_a_head_to_train():
    model = load_model(str(FIXTURES / "tiny_llama_tied"))
    config, params = untied(model.config, model.params)
    trained = head().init(params, 0)
    assert list(leaf_paths(trained)) == ["head/kernel"]
    found = jax.jit(logits_fn(config))(head().apply(params, trained), TOKENS)
    np.testing.assert_allclose(found, compiled(model.config)(model.params, TOKENS), rtol=1e-5, atol=1e-6)
    assert untied(config, params) == (config, params)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda params: LoRA(rank=99).init(params, 0), "`rank` 99: at most .*, the smaller dim of layers/attention/"),
        (lambda params: LoRA(rules=("attention/z",)).init(params, 0), "`rules` 'attention/z': matches no matrix"),
        (lambda params: LoRA(rules=("q/kernel", "q/")).init(params, 0), "`rules` 'q/': matches no matrix that an earlier rule has left"),
        (lambda params: LoRA(rules=("norm/scale",)).init(params, 0), "`rules` 'norm/scale': matches no matrix"),
        (lambda params: head().init(params, 0), r"`rules` '\^head/': matches no floating-point leaf"),
        (lambda params: LoRA(rank=0), "`rank` 0: an integer of at least 1 is required"),
        (lambda params: LoRA(alpha=0), "`alpha` 0: a number above 0"),
        (lambda params: Bottleneck(size=10**6).init(params, 0), "`size` 1000000: at most"),
        (lambda params: Partial(()), "`rules` .*: one that trains leaves is required"),
        (lambda params: Partial((Leaves("(", True),)), "a regular expression is required"),
        (lambda params: Partial((Leaves("", False), "norm")).init(params, 0), "`rules` 'norm': matches no floating-point leaf"),
    ],
)
def test_bad_settings_are_named(make, said):
    params = load_model(str(FIXTURES / "tiny_llama_tied")).params
    with pytest.raises(InputError, match=said):
        make(params)


def test_a_place_that_a_decoder_has_not_is_named():
    model = load_model(str(FIXTURES / "tiny_llama3"))
    lora = LoRA(rank=2, rules=("^head/kernel",))
    with pytest.raises(InputError, match="`rules` head/kernel: the model has no place for lora_a there"):
        model.config.build(lora.attach(model.params, lora.init(model.params, 0)))
    lora = LoRA(rank=2, rules=("^embed/",))
    with pytest.raises(ValueError, match="embed/embedding is no leaf called kernel"):
        lora.attach(model.params, lora.init(model.params, 0))


@pytest.fixture(scope="module")
def lora():
    return LoRA(rank=2, alpha=8)


@pytest.fixture(scope="module")
def trained(model, lora):
    return moved(lora.init(model.params, 0))


@pytest.fixture
def folder(model, lora, trained, tmp_path):
    return write_adapter(lora, trained, model, tmp_path / "adapter")


class TestFiles:
    """PEFT's developer guide, "PEFT checkpoint format": names, shapes, and y = W x + (lora_alpha / r) B A x."""

    def test_names_and_shapes_are_those_of_the_format(self, model, trained, folder):
        config, tensors, shape = json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS), model.config
        assert {key: config[key] for key in ("peft_type", "task_type", "r", "lora_alpha", "bias")} == {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": 2,
            "lora_alpha": 8,
            "bias": "none",
        }
        assert config["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
        assert len(tensors) == 14 * shape.num_layers
        down = "base_model.model.model.layers.1.mlp.down_proj.lora_{}.weight"
        assert tensors[down.format("A")].shape == (2, shape.intermediate_size)
        assert tensors[down.format("B")].shape == (shape.hidden_size, 2)
        prefix = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
        np.testing.assert_array_equal(tensors[f"{prefix}A.weight"], trained["layers"]["attention"]["q"]["kernel"]["a"][0].T)
        np.testing.assert_array_equal(tensors[f"{prefix}B.weight"], trained["layers"]["attention"]["q"]["kernel"]["b"][0].T)

    def test_round_trip(self, model, lora, trained, folder):
        found, factors = read_adapter(folder, model)
        assert (found.rank, found.alpha) == (2, 8.0)
        jax.tree.map(np.testing.assert_array_equal, factors, trained)
        assert fingerprint(found.apply(model.params, factors)) == fingerprint(lora.apply(model.params, trained))
        assert {m.path for m in found.matrices(model.params)} == {m.path for m in lora.matrices(model.params)}

    @pytest.mark.filterwarnings("ignore::FutureWarning")  # of peft's use of transformers
    def test_the_peft_package_computes_the_same(self, model, lora, trained, folder):
        torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
        transformers = pytest.importorskip("transformers")
        base = transformers.AutoModelForCausalLM.from_pretrained(FIXTURES / "tiny_qwen2", dtype=torch.float32)
        with torch.no_grad():
            expected = peft.PeftModel.from_pretrained(base, folder)(torch.tensor(TOKENS)).logits.numpy()
        found = compiled(model.config)(lora.attach(model.params, trained), TOKENS)
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()

    def test_rank_stabilized_adapters_are_the_same_with_another_alpha(self, model, folder):
        edit(folder, use_rslora=True)
        assert np.isclose(read_adapter(folder, model)[0].scale, 8 / np.sqrt(2))

    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"use_dora": True}, "use_dora true: is not supported"),
            ({"modules_to_save": ["lm_head"]}, 'modules_to_save \\["lm_head"\\]: is not supported'),
            ({"rank_pattern": {"q_proj": 4}}, "rank_pattern .* is not supported"),
            ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern .* is not supported"),
            ({"layers_to_transform": [0]}, "layers_to_transform .* is not supported"),
            ({"bias": "all"}, 'bias "all": "none" is required'),
            ({"init_lora_weights": "pissa"}, 'init_lora_weights "pissa": true, false or gaussian is required'),
            ({"a_new_feature": 1}, "a_new_feature 1: is not supported"),
            ({"peft_type": "IA3"}, 'peft_type "IA3": "LORA" is required'),
            ({"r": 3}, r"lora_A.weight has shape \(2, .* where rank 3"),
            ({"lora_alpha": -1}, "lora_alpha -1: a number above 0 is required"),
        ],
    )
    def test_features_that_are_not_supported_are_named(self, model, folder, changes, said):
        edit(folder, **changes)
        with pytest.raises(InputError, match=said) as caught:
            read_adapter(folder, model)
        assert "\n" not in str(caught.value)

    def test_adapters_of_another_base_are_refused(self, model, folder):
        other = jax.tree.map(lambda leaf: leaf * np.float32(1.1), model.params)
        with pytest.raises(InputError, match="it was trained on another base than tiny_qwen2"):
            read_adapter(folder, dataclasses.replace(model, params=other))
        tensors = load_file(folder / WEIGHTS)
        save_file(tensors, folder / WEIGHTS)  # as PEFT writes them, without our fingerprint
        assert read_adapter(folder, model)[0].rank == 2
        with pytest.raises(InputError, match=r"has shape .* where rank 2 and tiny_llama3 ask for"):
            read_adapter(folder, load_model(str(FIXTURES / "tiny_llama3")))
        del tensors["base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"]
        save_file(tensors, folder / WEIGHTS)
        with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj\.lora_A\.weight is missing"):
            read_adapter(folder, model)

    def test_damaged_files_are_refused(self, model, folder, lora, trained):
        with pytest.raises(InputError, match="is not an empty directory"):
            write_adapter(lora, trained, model, folder)
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:100])
        with pytest.raises(InputError, match="cut off or no safetensors file"):
            read_adapter(folder, model)
        (folder / WEIGHTS).unlink()
        (folder / "adapter_model.bin").write_bytes(b"")
        with pytest.raises(InputError, match="is a pickle, which can run any code and is never read"):
            read_adapter(folder, model)
        with pytest.raises(InputError, match="no such directory"):
            read_adapter(folder / "none", model)


def edit(folder, **changes):
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(config))
