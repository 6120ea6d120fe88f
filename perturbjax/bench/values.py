"""What value networks cost: three ratios of programs that take turns in one process. The weights are made up; no speed depends on them.

| row | ratio | aim |
|---|---|---|
| combined decoding | seconds of base and value network on their own, added up, over those of both together | at least 0.95 |
| training step | a step of the value network, the base's logits from files, over a fine-tuning step of its shape | at most 1.10 |
| vocabulary map | the map over the decoding step that it is part of | at most 0.05 |
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.inference.decode import generate
from perturbjax.ivl.combined import CombinedConfig
from perturbjax.ivl.logits_files import LogitsFiles
from perturbjax.ivl.logits_format import LogitsFormat
from perturbjax.ivl.logits_writing import ShardWriter
from perturbjax.ivl.loss import value_loss
from perturbjax.ivl.value import ValueConfig
from perturbjax.ivl.vocabulary import VocabularyMap
from perturbjax.models.attention import Past
from perturbjax.models.config import DecoderConfig, param_shapes
from perturbjax.report.words import size
from perturbjax.sharding import make_mesh
from perturbjax.train import Training
from perturbjax.train.language import fine_tuning_loss
from perturbjax.train.optimizer import make_optimizer
from perturbjax.train.placement import put_batch
from perturbjax.train.rows import Rows
from perturbjax.train.step import TrainState, make_step
from perturbjax.tree import nest


def shape(vocabulary: int, hidden: int, layers: int, intermediate: int, heads: int, kv_heads: int, tied: bool) -> DecoderConfig:
    """A decoder of heads of 64."""
    return DecoderConfig("llama", vocabulary, hidden, intermediate, layers, heads, kv_heads, 64, 1e4, 1e-6, tied, max_positions=1024)


@dataclass(frozen=True)
class Sizes:
    """Shapes of the rows.

    Attributes:
        base, value: of combined decoding; ``value`` of the training step too.
        rows, prompt, new: sequences decoded together, their tokens, new tokens of each.
        batch, tokens, queries: packed rows of the training step, their tokens, learned positions of each.
        map_base, map_value: of the row of the map.
        map_rows, columns: sequences of that decoding step, and room in the cache.
    """

    base: DecoderConfig
    value: DecoderConfig
    rows: int
    prompt: int
    new: int
    batch: int
    tokens: int
    queries: int
    map_base: DecoderConfig
    map_value: DecoderConfig
    map_rows: int
    columns: int


SIZES = Sizes(
    base=shape(16384, 384, 8, 1024, 6, 2, True),
    value=shape(16384, 384, 4, 1024, 6, 2, False),
    rows=16,
    prompt=16,
    new=32,
    batch=2,
    tokens=128,
    queries=64,
    map_base=shape(151936, 896, 24, 4864, 14, 2, True),
    map_value=shape(49152, 576, 30, 1536, 9, 3, True),
    map_rows=8,
    columns=128,
)
"""Minutes on two CPU cores; the map's row has the shapes of Qwen2.5-0.5B and SmolLM2-135M."""


@dataclass(frozen=True)
class Ratio:
    """One row.

    Attributes:
        label: for people.
        what: what is divided by what, and the shapes.
        aim: bound of the ratio; ``at_least``: it is the lowest good one, else the highest.
        rounds: the ratio of each round, by wall seconds.
        cpu_rounds: the same by seconds of all the process's threads: where other programs use the machine, this tells more.
        seconds: program -> wall seconds of each round.
        compile_s: of all programs, their first runs included.
    """

    label: str
    what: str
    aim: float
    at_least: bool
    rounds: list[float]
    cpu_rounds: list[float]
    seconds: dict[str, list[float]]
    compile_s: float

    @property
    def ratio(self) -> float:
        return statistics.median(self.rounds)

    @property
    def line(self) -> str:
        """For the terminal."""
        found = f"{self.ratio:.3f} ({min(self.rounds):.3f} to {max(self.rounds):.3f}), aim {'at least' if self.at_least else 'at most'} "
        return f"  {self.label:<19}{found}{self.aim:.2f}; by CPU seconds {statistics.median(self.cpu_rounds):.3f}; {self.what}"

    @property
    def document(self) -> dict[str, Any]:
        """For bench.json."""
        return {"kind": self.label, "ratio": self.ratio, "cpu_ratio": statistics.median(self.cpu_rounds)} | dataclasses.asdict(self)


def measure(sizes: Sizes, rounds: int) -> Iterator[Ratio]:
    """The rows, one after the other."""
    for make in (_decoding, _training, _mapping):
        yield make(sizes, rounds)


def compared_with_torch() -> str:
    """Why nothing of PyTorch is measured, for the terminal."""
    if importlib.util.find_spec("torch") is None:
        return "not measured: torch is not installed"
    return "not measured: no value network is written for it (scripts/bench_transformers.py compares the models alone)"


def _decoding(sizes: Sizes, rounds: int) -> Ratio:
    """Prefill and cached decoding of prompts that do not stop, greedy."""
    value = ValueConfig(sizes.value)
    configs: dict[str, Any] = {"base": sizes.base, "value": sizes.value, "both": CombinedConfig("value", sizes.base, (value,))}
    params = {"base": made_up_weights(sizes.base, 0), "value": made_up_weights(sizes.value, 1)}
    params["both"] = {"base": params["base"], "value": params["value"]}
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, sizes.base.vocab_size, (sizes.rows, sizes.prompt)), jnp.int32)
    lengths, valid = jnp.full(sizes.rows, sizes.prompt), jnp.ones(sizes.rows, bool)

    def program(name: str) -> Callable[[], Any]:
        run = jax.jit(lambda params: generate(configs[name].build(params), tokens, lengths, valid, sizes.new, ()).tokens)
        return lambda: run(params[name])

    what = f"{sizes.rows} prompts of {sizes.prompt} tokens, {sizes.new} new ones each"
    programs = {name: program(name) for name in configs}
    return ratio_row("combined decoding", what, 0.95, True, programs, rounds, lambda s: (s["base"] + s["value"]) / s["both"])


def _training(sizes: Sizes, rounds: int) -> Ratio:
    """One optimizer step on packed rows and the making of its batch, as ``perturbjax ivl --logits whole`` does: without the pass of the
    base, its logits being read from files (of the page cache, since they were just written)."""
    config, rng = sizes.value, np.random.default_rng(0)
    optimizer, mesh, numbers = make_optimizer(Training(steps=100), 100), make_mesh(jax.devices()[:1]), np.arange(sizes.batch)

    def integers(high: int, *shape: int) -> np.ndarray:
        return rng.integers(0, high, (sizes.batch, *shape)).astype(np.int32)

    arrays = {name: integers(config.vocab_size, length) for name, length in (("tokens", sizes.tokens), ("labels", sizes.queries))}
    arrays |= {"query": integers(sizes.tokens, sizes.queries), "segments": np.zeros_like(arrays["tokens"])}
    arrays["positions"] = np.broadcast_to(np.arange(sizes.tokens, dtype=np.int32)[None], arrays["tokens"].shape)
    arrays["weights"] = np.ones(arrays["labels"].shape, np.float32)
    rows, form = Rows(arrays, sizes.batch, ()), LogitsFormat(config.vocab_size)
    losses = {"value": value_loss(ValueConfig(config), config, jnp.float32, cached=form), "plain": fine_tuning_loss(config, jnp.float32)}

    def program(name: str, files: LogitsFiles) -> Callable[[], Any]:
        step = jax.jit(make_step(losses[name], optimizer), donate_argnums=0)
        weights = made_up_weights(config, 0)
        state = TrainState(weights, jax.jit(optimizer.init)(weights))
        beside = functools.partial(files, numbers) if name == "value" else None

        def run() -> Any:
            nonlocal state
            state, sums = step(state, (), put_batch(rows.batch(numbers), 1, mesh, beside))
            return state, sums

        return run

    with tempfile.TemporaryDirectory() as folder:
        files = LogitsFiles(Path(folder), form, rows, "made up", "made up", "made up")
        z_base = jnp.asarray(rng.normal(size=(sizes.batch, sizes.queries, config.vocab_size)), jnp.float32)
        files.prepare()
        for shard in range(files.shards):
            with ShardWriter(files, shard) as writer:
                for number in files.rows_of(shard):
                    stored = {name: np.asarray(array[number]) for name, array in form.encode(z_base).items()}
                    writer.add(number, stored | dict.fromkeys(("kl", "label_error"), np.zeros(sizes.queries, np.float32)))
        what = f"{sizes.batch} rows of {sizes.tokens} tokens, {sizes.queries} of them learned, no base run, {size(files.nbytes)} read"
        programs = {name: program(name, files) for name in losses}
        return ratio_row("training step", what, 1.10, False, programs, rounds, lambda s: s["value"] / s["plain"])


def _mapping(sizes: Sizes, rounds: int) -> Ratio:
    """One decoding step of a base and a value network of other vocabularies, and the map of its logits alone."""
    base, value, rng = sizes.map_base, sizes.map_value, np.random.default_rng(0)
    indices = rng.integers(0, value.vocab_size, (base.vocab_size, 4)).astype(np.int32)
    weights = rng.random(indices.shape).astype(np.float32)
    every, none = np.ones(value.vocab_size, bool), np.zeros(base.vocab_size, bool)
    table = VocabularyMap("exact_first", indices, weights, none, every, "made up", "made up")
    config = CombinedConfig("value", base, (ValueConfig(value),), vocabulary=table, reads=table)
    params = {"base": made_up_weights(base, 0), "value": made_up_weights(value, 1)}
    tokens = jnp.asarray(rng.integers(0, base.vocab_size, sizes.map_rows), jnp.int32)
    z_value = jnp.asarray(rng.normal(size=(sizes.map_rows, value.vocab_size)), jnp.float32)

    @jax.jit
    def step(params: Any) -> jax.Array:
        model = config.build(params)
        _, cache = model.empty(sizes.map_rows, sizes.columns)
        used = sizes.columns // 2
        valid = jnp.broadcast_to((jnp.arange(sizes.columns) < used)[None], (sizes.map_rows, sizes.columns))
        own, positions = jnp.ones((sizes.map_rows, 1, 1), bool), jnp.full((sizes.map_rows, 1), used)
        hidden, _ = model(tokens[:, None], positions, own, None, Past(cache, valid, jnp.int32(used)))
        return model.vocabulary.argmax(model.logits(jax.tree.map(lambda h: h[:, 0], hidden)))

    apply = jax.jit(lambda z: table.apply(z, base.vocab_size))
    what = f"{base.vocab_size:,} tokens from {value.vocab_size:,}, 4 entries each, {sizes.map_rows} sequences"
    programs = {"map": lambda: apply(z_value), "step": lambda: step(params)}
    return ratio_row("vocabulary map", what, 0.05, False, programs, rounds, lambda s: s["map"] / s["step"])


def ratio_row(
    label: str,
    what: str,
    aim: float,
    at_least: bool,
    programs: Mapping[str, Callable[[], Any]],
    rounds: int,
    ratio: Callable[[Mapping[str, float]], float],
) -> Ratio:
    """Runs the programs once to compile them, then in turns, forwards and backwards."""
    started = time.perf_counter()
    for run in programs.values():
        jax.block_until_ready(run())
    compile_s = time.perf_counter() - started
    wall: dict[str, list[float]] = {name: [] for name in programs}
    cpu: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(rounds):
        for name in list(programs)[:: 1 if number % 2 == 0 else -1]:
            started = time.perf_counter(), time.process_time()
            jax.block_until_ready(programs[name]())
            wall[name].append(time.perf_counter() - started[0])
            cpu[name].append(time.process_time() - started[1])
    by_wall, by_cpu = ([ratio({name: taken[n] for name, taken in times.items()}) for n in range(rounds)] for times in (wall, cpu))
    return Ratio(label, what, aim, at_least, by_wall, by_cpu, wall, compile_s)


def made_up_weights(config: DecoderConfig, seed: int) -> Any:
    """Small random weights, the same for every layer of a stack."""
    rng = np.random.default_rng(seed)

    def one(shape: tuple[int, ...]) -> jax.Array:
        # A row of a few thousand numbers, repeated: gigabytes of random numbers would take longer than the rows.
        row = rng.normal(0, 0.02, 4099).astype(np.float32)
        return jnp.asarray(np.resize(row, shape))

    return nest({path: one(shape) for path, shape in param_shapes(config).items()})
