"""What a run would need on chips that are not here: its programs compiled for them, and a roofline from their vendor's figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from perturbjax import sharding
from perturbjax._compat import is_out_of_memory
from perturbjax.errors import InputError
from perturbjax.inference.programs import choice_values, generate_replies
from perturbjax.ivl.combined import CombinedConfig
from perturbjax.ivl.loss import value_loss
from perturbjax.ivl.value import ValueConfig
from perturbjax.models.config import DecoderConfig, forward_flops, param_shapes
from perturbjax.noise import Noise
from perturbjax.scoring import ChunkProgram
from perturbjax.train import Training
from perturbjax.train.language import fine_tuning_loss
from perturbjax.train.optimizer import make_optimizer
from perturbjax.train.placement import BATCH, param_specs, state_shardings
from perturbjax.train.step import TrainState, make_step
from perturbjax.tree import nest

QUERIES, CHOICES = 64, 2
"""Questions of a scoring pass, and one-token choices of each."""


@dataclass(frozen=True)
class Chip:
    """Figures of one chip as its vendor states them: HBM bytes, dense bf16 FLOP/s, HBM bytes/s, and bytes/s of a ring over one axis of the
    torus, both directions together."""

    hbm: float
    flops: float
    bandwidth: float
    ring: float


CHIPS = {
    "v5e": Chip(16 * 2**30, 197e12, 819e9, 90e9),
    "v5p": Chip(95 * 2**30, 459e12, 2765e9, 180e9),
    "v6e": Chip(32 * 2**30, 918e12, 1640e9, 180e9),
}


class Plan:
    """The programs of a model in bfloat16, of which there are only shapes, on a mesh of devices that may not be there.

    Args:
        base: the decoder.
        devices: of a topology (``jax.experimental.topologies``).
        model: size of the "model" axis.
        noise, strategy: as of a search; None runs the model as it is.
        value: shape of a value network, with a head of its own, that is trained beside the base and decodes with it. None: the base alone.

    Raises:
        InputError: the two have vocabularies of different sizes, or one cannot be sharded so.
    """

    def __init__(
        self,
        base: DecoderConfig,
        devices: Sequence[Any],
        model: int,
        noise: Noise | None,
        strategy: str,
        value: DecoderConfig | None = None,
    ):
        self.noise, self.strategy = noise, strategy
        self.mesh = sharding.make_mesh(devices, model)
        self.parts, self.config, self.value = {"": base}, base, None
        if value is not None:
            if value.vocab_size != base.vocab_size:
                raise InputError(f"`value`: {value.vocab_size:,} tokens, the base has {base.vocab_size:,}; one vocabulary is planned")
            self.value = ValueConfig(replace(value, tied_head=False))
            self.parts = {"base": base, "value": self.value.decoder}
            self.config = CombinedConfig("value", base, (self.value,))
        self.parallel: Any = self.config.partition(model)
        parts = {name: _shapes(part, jnp.bfloat16) for name, part in self.parts.items()}
        params = parts if value else parts[""]
        self.params = sharding.shard_params(params, self.mesh, self.parallel.dims(self.config) if self.parallel else None)

    def scoring(self, slots: int, rows: int, tokens: int, in_flight: int = 1, max_candidates: int | None = None) -> Any:
        """The compiled program that scores ``slots`` passes of packed rows. ``max_candidates``: of one call; one a group at least."""
        shapes = dict.fromkeys(("tokens", "positions", "example", "branch"), (slots, rows, tokens))
        shapes |= {"query": (slots, QUERIES), "ids": (slots, QUERIES, CHOICES), "num_valid": ()}
        data = {name: jax.ShapeDtypeStruct(shape, np.int32) for name, shape in shapes.items()}
        data["lead"] = jax.ShapeDtypeStruct((min(128, tokens),), np.bool_)
        return self._compile(choice_values(self.config, single=False, parallel=self.parallel), data, in_flight, max_candidates)

    def generation(self, rows: int, prompt: int, new: int, in_flight: int = 1) -> Any:
        """The compiled program that continues ``rows`` prompts greedily, ``new`` tokens each."""
        shapes = {
            "tokens": (1, rows, prompt),
            "lengths": (1, rows),
            "row_ids": (1, rows),
            "prefix": (1, 0),
            "prefix_length": (),
            "num_valid": (),
        }
        data = {name: jax.ShapeDtypeStruct(shape, np.int32) for name, shape in shapes.items()}
        data |= {"valid": jax.ShapeDtypeStruct((1, rows), np.bool_), "temperature": jax.ShapeDtypeStruct((), np.float32)}
        return self._compile(generate_replies(self.config, new, (1,), sample=False, parallel=self.parallel), data, in_flight)

    def _compile(self, fn: Callable[..., Any], data: Any, in_flight: int, max_candidates: int | None = None) -> Any:
        least = self.mesh.shape[sharding.DATA] * in_flight
        return ChunkProgram(fn, self.params, self.noise, self.mesh, max_candidates or least, in_flight, self.strategy).lower(data).compile()

    def training(self, rows: int, tokens: int, queries: int) -> Any:
        """The compiled optimizer step on ``rows`` packed rows, ``queries`` of whose tokens are learned: of the value network beside the
        frozen base, or of all parameters of the base. Layers are computed again in the backward pass."""
        model = self.mesh.shape[sharding.MODEL]
        trained = self.parts["value"] if self.value else self.parts[""]
        optimizer = make_optimizer(Training(), 1000)
        state, shardings = self.train_state(trained, optimizer)
        if self.value:
            base = self.parts["base"]
            its = base.partition(model)
            frozen = _shapes(base, jnp.bfloat16)
            frozen = self.placed(frozen, param_specs(frozen, its.dims(base) if its else {}))
            loss = value_loss(self.value, base, jnp.bfloat16, remat=True)
        else:
            frozen, loss = None, fine_tuning_loss(trained, jnp.bfloat16, remat=True)
        step = jax.jit(make_step(loss, optimizer), donate_argnums=0, out_shardings=(shardings, None))
        return step.lower(state, frozen, self.placed(packed_rows(rows, tokens, queries), BATCH)).compile()

    def train_state(self, trained: DecoderConfig, optimizer: Any) -> tuple[TrainState, TrainState]:
        """Weights and moments in float32 as shapes that know where they lie, and their shardings."""
        params = _shapes(trained, jnp.float32)
        state = TrainState(params, jax.eval_shape(optimizer.init, params))
        layout = trained.partition(self.mesh.shape[sharding.MODEL])
        shardings = state_shardings(state, optimizer, self.mesh, layout.dims(trained) if layout else {})
        return jax.tree.map(lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), state, shardings), shardings

    def placed(self, shapes: Any, specs: Any) -> Any:
        """Shapes that know where they lie: a tree of partition specs, or one of all leaves."""

        def one(leaf: Any, spec: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(self.mesh, spec))

        return jax.tree.map(one, shapes, jax.tree.map(lambda _: specs, shapes) if isinstance(specs, PartitionSpec) else specs)

    @property
    def parameters(self) -> int:
        """Of all parts."""
        return sum(map(_parameters, self.parts.values()))

    def cache_bytes(self, rows: int, tokens: int) -> int:
        """Keys and values of every layer of every part on one device, bfloat16."""
        total = 0
        for part in self.parts.values():
            layout = part.partition(self.mesh.shape[sharding.MODEL])
            total += 2 * 2 * part.num_layers * (layout.local(part) if layout else part).num_kv_heads * part.head_dim
        return total * rows * tokens

    def flops(self, rows: int, tokens: int, logits: int) -> float:
        """Of a forward pass of all parts; see ``forward_flops``."""
        return sum(forward_flops(part, rows, tokens, logits) for part in self.parts.values())

    def training_flops(self, rows: int, tokens: int, logits: int) -> float:
        """Of an optimizer step: forward and twice as much backward of what is trained, forward alone of a frozen base. What is computed
        again to save memory is not counted."""
        *frozen, trained = self.parts.values()
        return 3 * forward_flops(trained, rows, tokens, logits) + sum(forward_flops(part, rows, tokens, logits) for part in frozen)

    def roofline(self, chip: Chip, flops: float, summed: float, read: float) -> dict[str, float]:
        """Seconds that one candidate takes on its group of chips by each of what may bound it.

        Args:
            flops: of the candidate.
            summed: bytes added up over "model", as one device holds them.
            read: bytes that each device reads from its memory.
        """
        model = self.mesh.shape[sharding.MODEL]
        # A ring sends everything once around to add it up and once more to hand it out, less a device's own part.
        ring = 2 * (model - 1) / model * summed / chip.ring
        return {"FLOPs": flops / model / chip.flops, "HBM": read / chip.bandwidth, "ICI": ring}


def packed_rows(count: int, tokens: int, queries: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of packed rows, in one part."""
    shapes = dict.fromkeys(("tokens", "positions", "segments"), (1, count, tokens)) | dict.fromkeys(
        ("query", "labels"), (1, count, queries)
    )
    found = {name: jax.ShapeDtypeStruct(shape, np.int32) for name, shape in shapes.items()}
    return found | {"weights": jax.ShapeDtypeStruct((1, count, queries), np.float32)}


def _shapes(config: DecoderConfig, dtype: Any) -> Any:
    return nest({path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in param_shapes(config).items()})


def _parameters(config: DecoderConfig) -> int:
    return sum(math.prod(shape) for shape in param_shapes(config).values())


def device_bytes(compiled: Any) -> int:
    """Arguments, temporaries and results of a compiled program on one device."""
    memory = compiled.memory_analysis()
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes


def largest(chip: Chip, start: int, compiled: Callable[[int], Any]) -> int:
    """The largest of start, 2 start, 4 start, ... whose program fits on the chip; 0 where none does."""
    fitting, n = 0, start
    while _fits(chip, compiled, n):
        fitting, n = n, 2 * n
    return fitting


def _fits(chip: Chip, compiled: Callable[[int], Any], n: int) -> bool:
    try:
        return device_bytes(compiled(n)) <= chip.hbm
    except jax.errors.JaxRuntimeError as error:
        # The compiler itself refuses what is far too large.
        if not is_out_of_memory(error):
            raise
        return False
