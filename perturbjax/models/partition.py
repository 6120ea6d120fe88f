"""How a decoder is sharded over the devices of the "model" axis, as in Megatron-LM (arXiv 1909.08053).

q, k, v, gate and up are sharded by column, o and down by row, with one sum over the axis after o and one after down; embedding and head by
vocabulary, the cache by heads; norms and routers are on every device. Of experts, each has its columns and rows sharded so.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from perturbjax.models.config import DecoderConfig
from perturbjax.sharding import ShardedDim


@dataclass(frozen=True)
class TensorParallel:
    """A decoder on ``size`` devices; static, so that the compiled functions know it.

    Attributes:
        size: of the "model" axis, at least 2.
        attention: each device has whole query heads, and the key heads that they look at: its own ones, or one that it shares with its
            neighbors where there are fewer key heads than devices. Where heads cannot be assigned that way (SmolLM2-135M has 9), False:
            every device does all of attention, and nothing is summed.
        mlp: each device has a block of the ffn; False where that does not divide.
    """

    size: int
    attention: bool
    mlp: bool

    def local(self, config: DecoderConfig) -> DecoderConfig:
        """The shape of what one device runs."""
        changes: dict[str, int] = {"vocab_size": -(-config.vocab_size // self.size)}
        if self.attention:
            heads, group = config.num_heads // self.size, config.num_heads // config.num_kv_heads
            changes |= {"num_heads": heads, "num_kv_heads": max(1, heads // group)}
        if self.mlp:
            changes["intermediate_size"] = config.intermediate_size // self.size
        return dataclasses.replace(config, **changes)

    def dims(self, config: DecoderConfig) -> dict[str, ShardedDim]:
        """Path -> the sharded dim of that parameter, if it is there; those that are not named are on every device. Of LoRA factors beside a
        matrix, B is sharded as its columns are, A as its rows: sums over the devices then hold for both products."""
        local, devices = self.local(config), range(self.size)

        def even(dim: int, size: int) -> ShardedDim:
            return ShardedDim(dim, size, tuple(device * size for device in devices))

        dims = {"embed/embedding": even(0, local.vocab_size)}
        if not config.tied_head:
            dims["head/kernel"] = even(1, local.vocab_size)
        if self.attention:
            size, group = config.head_dim, config.num_heads // config.num_kv_heads
            heads = even(2, local.num_heads * size)
            keys = ShardedDim(2, local.num_kv_heads * size, tuple(device * local.num_heads // group * size for device in devices))
            for name, dim in (("q", heads), ("k", keys), ("v", keys)):
                dims[f"layers/attention/{name}/kernel"] = dim
                dims[f"layers/attention/{name}/lora_b"] = dim
                dims[f"layers/attention/{name}/bias"] = dataclasses.replace(dim, dim=1)
                if config.qk_norm == "projection":
                    dims[f"layers/attention/{name}_norm/scale"] = dataclasses.replace(dim, dim=1)
            dims["layers/attention/o/kernel"] = dims["layers/attention/o/lora_a"] = even(1, local.num_heads * size)
        if self.mlp:
            experts = 1 if config.num_experts else 0
            for name, factor, dim in (("gate", "lora_b", 2), ("up", "lora_b", 2), ("down", "lora_a", 1)):
                for leaf in ("kernel", factor):
                    dims[f"layers/mlp/{name}/{leaf}"] = even(dim + experts, local.intermediate_size)
        return dims


def partition(config: DecoderConfig, size: int) -> TensorParallel | None:
    """The layout of a decoder on a "model" axis of ``size``; None where one device has all of it."""
    if size == 1:
        return None
    heads, rest = divmod(config.num_heads, size)
    group = config.num_heads // config.num_kv_heads
    whole_groups = rest == 0 and (heads % group == 0 or group % heads == 0)
    return TensorParallel(size, whole_groups, config.intermediate_size % size == 0)
