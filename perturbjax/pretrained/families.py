"""The model families: what is particular to each, in one table that the loaders, export and every check read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

from perturbjax.models.config import DecoderConfig, SlidingWindow


class TensorNames(NamedTuple):
    """What the two file formats call a parameter; ``{}`` is the layer, a second one the expert, where each has a tensor of its own."""

    hf: str
    gguf: str


class NumberNames(NamedTuple):
    """What the two file formats call a whole number of the configuration.

    Attributes:
        hf: keys of config.json; the first that is there counts, and export writes the first.
        gguf: key of the metadata, after the architecture; None: files do not say it.
    """

    hf: tuple[str, ...]
    gguf: str | None


class Refusal(NamedTuple):
    """An option of config.json that the decoder does not implement.

    Attributes:
        option: its key, or a few words where several keys together make it.
        is_set: config.json -> whether the model needs the option.
        required: what would be accepted instead, for people.
    """

    option: str
    is_set: Callable[[Mapping[str, Any]], bool]
    required: str


@dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
        name: what GGUF files say in ``general.architecture``, and ``DecoderConfig.architecture``.
        hf_class: the one entry of ``architectures`` in config.json.
        model_type: of config.json.
        decoder: fields of ``DecoderConfig`` that the family alone decides.
        defaults: what transformers assumes for keys that config.json leaves out.
        refusals: options of config.json that are refused.
        hf_extras: keys that export writes into config.json for a model that came without one, beside those of every family.
        tensors: path in the parameter tree -> its names; the paths are a superset of ``param_shapes`` of any member.
        gguf_permutes_qk: GGUF files keep the rows of the q and k kernels in interleaved rotary order.
        numbers: field of ``DecoderConfig`` -> its names, where they are not those of every family.
        window: what is assumed where files leave it out, of a family whose layers may slide; None: its layers see all.
        gguf_completes: sets what GGUF files do not say.
    """

    name: str
    hf_class: str
    model_type: str
    decoder: Mapping[str, Any]
    defaults: Mapping[str, Any]
    refusals: tuple[Refusal, ...]
    hf_extras: Mapping[str, Any]
    tensors: Mapping[str, TensorNames]
    gguf_permutes_qk: bool
    numbers: Mapping[str, NumberNames] = field(default_factory=dict)
    window: SlidingWindow | None = None
    gguf_completes: Callable[[DecoderConfig], DecoderConfig] = lambda config: config


_GELU = "gelu_pytorch_tanh"
_WINDOW_LAYERS = 28
"""What transformers assumes for ``max_window_layers``."""


def _slides(raw: Mapping[str, Any]) -> bool:
    """Whether any layer of a Qwen model attends to a sliding window: ``layer_types`` decides, before transformers 5 two older keys."""
    if raw.get("layer_types") is not None:
        return not isinstance(raw["layer_types"], list) or any(kind != "full_attention" for kind in raw["layer_types"])
    first, layers = raw.get("max_window_layers"), raw.get("num_hidden_layers")
    first = _WINDOW_LAYERS if first is None else first
    return bool(raw.get("use_sliding_window")) and not (isinstance(first, int) and isinstance(layers, int) and first >= layers)


_ATTENTION_BIAS = Refusal("attention_bias", lambda raw: bool(raw.get("attention_bias")), "false")
_ACTIVATION = Refusal("hidden_act", lambda raw: raw.get("hidden_act", "silu") not in ("silu", "swish"), "silu")
_SLIDING_WINDOW = Refusal("sliding window attention", _slides, "use_sliding_window false and only full_attention layers")

# What the families share, stated once. A family adds to it or overrides it.
_REFUSALS = (
    Refusal("quantization_config", lambda raw: bool(raw.get("quantization_config")), "unquantized safetensors, or a GGUF file"),
    Refusal("mlp_bias", lambda raw: bool(raw.get("mlp_bias")), "false"),
)
_DEFAULTS = {"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False}
_TENSORS = {
    "embed/embedding": TensorNames("model.embed_tokens.weight", "token_embd.weight"),
    "layers/attention_norm/scale": TensorNames("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight"),
    "layers/attention/q/kernel": TensorNames("model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight"),
    "layers/attention/k/kernel": TensorNames("model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight"),
    "layers/attention/v/kernel": TensorNames("model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight"),
    "layers/attention/o/kernel": TensorNames("model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight"),
    "layers/attention/q/bias": TensorNames("model.layers.{}.self_attn.q_proj.bias", "blk.{}.attn_q.bias"),
    "layers/attention/k/bias": TensorNames("model.layers.{}.self_attn.k_proj.bias", "blk.{}.attn_k.bias"),
    "layers/attention/v/bias": TensorNames("model.layers.{}.self_attn.v_proj.bias", "blk.{}.attn_v.bias"),
    "layers/attention/q_norm/scale": TensorNames("model.layers.{}.self_attn.q_norm.weight", "blk.{}.attn_q_norm.weight"),
    "layers/attention/k_norm/scale": TensorNames("model.layers.{}.self_attn.k_norm.weight", "blk.{}.attn_k_norm.weight"),
    "layers/mlp_norm/scale": TensorNames("model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight"),
    "layers/mlp/gate/kernel": TensorNames("model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight"),
    "layers/mlp/up/kernel": TensorNames("model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight"),
    "layers/mlp/down/kernel": TensorNames("model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight"),
    "norm/scale": TensorNames("model.norm.weight", "output_norm.weight"),
    "head/kernel": TensorNames("lm_head.weight", "output.weight"),
}

_POST_NORMS = {
    "layers/attention_post_norm/scale": TensorNames("model.layers.{}.post_attention_layernorm.weight", "blk.{}.post_attention_norm.weight"),
    "layers/mlp_post_norm/scale": TensorNames("model.layers.{}.post_feedforward_layernorm.weight", "blk.{}.post_ffw_norm.weight"),
}
_EXPERTS = {
    "layers/mlp/router/kernel": TensorNames("model.layers.{}.mlp.gate.weight", "blk.{}.ffn_gate_inp.weight"),
    "layers/mlp/gate/kernel": TensorNames("model.layers.{}.mlp.experts.{}.gate_proj.weight", "blk.{}.ffn_gate_exps.weight"),
    "layers/mlp/up/kernel": TensorNames("model.layers.{}.mlp.experts.{}.up_proj.weight", "blk.{}.ffn_up_exps.weight"),
    "layers/mlp/down/kernel": TensorNames("model.layers.{}.mlp.experts.{}.down_proj.weight", "blk.{}.ffn_down_exps.weight"),
}

_GEMMA3_27B_LAYERS = 62


def _gemma3_scalar(config: DecoderConfig) -> DecoderConfig:
    """As llama.cpp: the head size, but for the 27B, which it knows by its layers."""
    large = config.num_layers == _GEMMA3_27B_LAYERS
    return replace(config, query_scalar=config.hidden_size // config.num_heads if large else config.head_dim)


_RECORDS = (
    Family(
        name="llama",
        hf_class="LlamaForCausalLM",
        model_type="llama",
        decoder={"qkv_bias": False},
        defaults=_DEFAULTS | {"max_position_embeddings": 2048, "num_key_value_heads": None},
        refusals=(*_REFUSALS, _ACTIVATION, _ATTENTION_BIAS),
        hf_extras={"attention_bias": False, "mlp_bias": False},
        tensors=_TENSORS,
        gguf_permutes_qk=True,
    ),
    Family(
        name="qwen2",
        hf_class="Qwen2ForCausalLM",
        model_type="qwen2",
        decoder={"qkv_bias": True},
        defaults=_DEFAULTS | {"max_position_embeddings": 32768, "num_key_value_heads": 32},
        refusals=(*_REFUSALS, _ACTIVATION, _SLIDING_WINDOW),
        hf_extras={"use_sliding_window": False},
        tensors=_TENSORS,
        gguf_permutes_qk=False,
    ),
    Family(
        name="qwen3",
        hf_class="Qwen3ForCausalLM",
        model_type="qwen3",
        decoder={"qk_norm": "head"},
        defaults=_DEFAULTS | {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
        refusals=(*_REFUSALS, _ACTIVATION, _ATTENTION_BIAS, _SLIDING_WINDOW),
        hf_extras={"attention_bias": False, "use_sliding_window": False},
        tensors=_TENSORS,
        gguf_permutes_qk=False,
    ),
    Family(
        name="qwen3moe",
        hf_class="Qwen3MoeForCausalLM",
        model_type="qwen3_moe",
        decoder={"qk_norm": "head"},
        defaults=_DEFAULTS | {"max_position_embeddings": 32768, "num_key_value_heads": 4, "intermediate_size": 6144},
        refusals=(
            *_REFUSALS,
            _ACTIVATION,
            _ATTENTION_BIAS,
            Refusal("use_sliding_window", lambda raw: bool(raw.get("use_sliding_window")), "false"),
            Refusal("norm_topk_prob", lambda raw: raw.get("norm_topk_prob") is not True, "true"),
            Refusal("decoder_sparse_step", lambda raw: raw.get("decoder_sparse_step", 1) != 1, "1"),
            Refusal("mlp_only_layers", lambda raw: bool(raw.get("mlp_only_layers")), "an empty list"),
        ),
        hf_extras={"attention_bias": False, "use_sliding_window": False}
        | {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []},
        tensors=_TENSORS | _EXPERTS,
        gguf_permutes_qk=False,
        numbers={
            "intermediate_size": NumberNames(("moe_intermediate_size",), "expert_feed_forward_length"),
            "num_experts": NumberNames(("num_experts", "num_local_experts"), "expert_count"),
            "experts_per_token": NumberNames(("num_experts_per_tok",), "expert_used_count"),
        },
    ),
    Family(
        name="olmo2",
        hf_class="Olmo2ForCausalLM",
        model_type="olmo2",
        decoder={"norms": "post", "qk_norm": "projection"},
        defaults=_DEFAULTS | {"max_position_embeddings": 2048, "num_key_value_heads": None, "rms_norm_eps": 1e-5},
        refusals=(*_REFUSALS, _ACTIVATION, _ATTENTION_BIAS),
        hf_extras={"attention_bias": False},
        tensors=_TENSORS | _POST_NORMS,
        gguf_permutes_qk=False,
    ),
    Family(
        name="gemma3",
        hf_class="Gemma3ForCausalLM",
        model_type="gemma3_text",
        decoder={"norms": "both", "norm_offset": 1.0, "qk_norm": "head", "activation": "gelu_tanh", "scaled_embedding": True},
        defaults=_DEFAULTS
        | {"rope_theta": 1e6, "tie_word_embeddings": True, "max_position_embeddings": 131072}
        | {"num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256},
        refusals=(
            *_REFUSALS,
            _ATTENTION_BIAS,
            Refusal("hidden_activation", lambda raw: raw.get("hidden_activation", _GELU) != _GELU, _GELU),
            *(
                Refusal(option, lambda raw, option=option: bool(raw.get(option)), required)
                for option, required in (
                    ("final_logit_softcapping", "null"),
                    ("attn_logit_softcapping", "null"),
                    ("use_bidirectional_attention", "false"),
                )
            ),
        ),
        hf_extras={"attention_bias": False, "hidden_act": _GELU, "hidden_activation": _GELU},
        tensors=_TENSORS
        | _POST_NORMS
        | {"layers/mlp_norm/scale": TensorNames("model.layers.{}.pre_feedforward_layernorm.weight", "blk.{}.ffn_norm.weight")},
        gguf_permutes_qk=False,
        numbers={"query_scalar": NumberNames(("query_pre_attn_scalar",), None)},
        window=SlidingWindow(size=4096, every=6, rope_theta=1e4),
        gguf_completes=_gemma3_scalar,
    ),
)
FAMILIES: Mapping[str, Family] = MappingProxyType({family.name: family for family in _RECORDS})
"""Every supported family, by its name. Another one is another record here, and fields of ``DecoderConfig`` if it computes something new."""
