"""What a search would need on chips that are not here: its programs compiled for them, and a roofline from their vendor's figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax import sharding
from perturbjax._compat import is_out_of_memory
from perturbjax.inference.programs import choice_values, generate_replies
from perturbjax.models.config import DecoderConfig, param_shapes
from perturbjax.models.partition import partition
from perturbjax.noise import Noise
from perturbjax.scoring import ChunkProgram
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
    """The programs of a decoder in bfloat16, of which there are only shapes, on a mesh of devices that may not be there.

    Args:
        config: the decoder.
        devices: of a topology (``jax.experimental.topologies``).
        model: size of the "model" axis.
        noise, strategy: as of a search.
    """

    def __init__(self, config: DecoderConfig, devices: Sequence[Any], model: int, noise: Noise, strategy: str):
        self.config, self.noise, self.strategy = config, noise, strategy
        self.mesh = sharding.make_mesh(devices, model)
        self.parallel = partition(config, model)
        shapes = param_shapes(config)
        params = nest({path: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for path, shape in shapes.items()})
        self.params = sharding.shard_params(params, self.mesh, self.parallel.dims(config) if self.parallel else None)
        self.parameters = sum(math.prod(shape) for shape in shapes.values())

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

    def cache_bytes(self, rows: int, tokens: int) -> int:
        """Keys and values of every layer on one device, bfloat16."""
        local = self.parallel.local(self.config) if self.parallel else self.config
        return 2 * 2 * self.config.num_layers * local.num_kv_heads * self.config.head_dim * rows * tokens

    def flops(self, rows: int, tokens: int, logits: int) -> float:
        """Multiply-adds times two of ``rows`` sequences of ``tokens`` with logits at ``logits`` positions: matrices, attention (half of the
        square), head."""
        c, count = self.config, rows * tokens
        matrices = self.parameters - c.vocab_size * c.hidden_size * (1 if c.tied_head else 2)
        attention = 2 * 2 * c.num_layers * c.num_heads * c.head_dim * rows * tokens**2 / 2
        return 2 * matrices * count + attention + 2 * c.vocab_size * c.hidden_size * logits

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
