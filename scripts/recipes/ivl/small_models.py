"""Small decoders and tokenizers made here from real English text: the passages of the installed evaluation sets."""

import argparse
import dataclasses
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from perturbjax import sharding
from perturbjax.models.config import DecoderConfig, param_shapes
from perturbjax.pretrained import Model
from perturbjax.pretrained.tokenizer import Tokenizer
from perturbjax.runs.compile_cache import use_compile_cache
from perturbjax.runs.console import Console
from perturbjax.runs.files import MetricsLog
from perturbjax.tasks.sources import Source
from perturbjax.train import Training
from perturbjax.train.language import fine_tuning_loss
from perturbjax.train.loop import fit
from perturbjax.train.problem import Fitted, Problem
from perturbjax.train.rows import Rows
from perturbjax.tree import derived_seed, nest

END = "<|endoftext|>"
ROW = 128
"""Tokens of a row of running text."""
HELLASWAG = Source("HellaSwag validation", "hf_datasets/hellaswag/none/validation", "Rowan/hellaswag", None, "validation")
BOOLQ = Source("BoolQ validation", "hf_datasets/boolq/none/validation", "google/boolq", None, "validation")


@dataclass(frozen=True)
class Size:
    """Width, width of the MLP and layers of a decoder; heads are 32 wide."""

    width: int
    mlp: int
    layers: int

    def decoder(self, vocab_size: int) -> DecoderConfig:
        heads = self.width // 32
        return DecoderConfig(
            "llama", vocab_size, self.width, self.mlp, self.layers, heads, heads, 32, 1e4, 1e-5, True, max_positions=8 * ROW
        )


def stories() -> list[str]:
    """HellaSwag's contexts with their right endings: short accounts of everyday things."""
    return [f"{row['ctx'].strip()} {row['endings'][int(row['label'])].strip()}" for row in HELLASWAG.rows()]


def byte_level(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE trained on the texts. 257 tokens: the bytes and the end, so that every character of English is one token."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=[END], show_progress=False)
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend, special_tokens={"eos_token": END}, eos_ids=[0], chat_template=None, name="small")


def running_text(texts: Sequence[str], tokenizer: Tokenizer, seed: int, row_tokens: int = ROW) -> Rows:
    """The texts in a random order, each followed by the end, cut into rows whose every next token is learned."""
    order = list(texts)
    random.Random(seed).shuffle(order)
    ids = np.array([token for text in order for token in (*tokenizer.encode(text), tokenizer.turn_end)], np.int32)
    n = (len(ids) - 1) // row_tokens
    columns = np.broadcast_to(np.arange(row_tokens, dtype=np.int32), (n, row_tokens))
    arrays = {
        "tokens": ids[: n * row_tokens].reshape(n, row_tokens),
        "positions": columns,
        "segments": np.zeros((n, row_tokens), np.int32),
        "query": columns,
        "labels": ids[1 : n * row_tokens + 1].reshape(n, row_tokens),
        "weights": np.ones((n, row_tokens), np.float32),
    }
    return Rows(arrays, n, ())


def random_model(name: str, size: Size, tokenizer: Tokenizer, seed: int) -> Model:
    """Random parameters: normal with 0.02, those that write into the residual stream smaller by sqrt(2 L), as GPT-2."""
    config = size.decoder(tokenizer.vocab_size)
    rng = np.random.default_rng(derived_seed(seed, name))

    def one(path: str, shape: tuple[int, ...]) -> np.ndarray:
        if path.endswith("/scale"):
            return np.ones(shape, np.float32)
        out = path.endswith(("/o/kernel", "/down/kernel"))
        return rng.normal(0, 0.02 / (np.sqrt(2 * size.layers) if out else 1), shape).astype(np.float32)

    params = nest({path: one(path, shape) for path, shape in param_shapes(config).items()})
    return Model(name, "trained here", config, params, tokenizer, {})


def begin(about: str, steps: int) -> tuple[argparse.Namespace, Callable[[str], None]]:
    """The command line of an experiment (``out``, ``seed``, ``steps`` of pretraining), and a printer of lines with the seconds so far."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the trainings; continued when it is there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=steps, help="steps of pretraining")
    arguments, started = parser.parse_args(), time.perf_counter()
    use_compile_cache("auto", Console())
    return arguments, lambda text: print(f"[{time.perf_counter() - started:6.0f} s] {text}", flush=True)


def trained(problem: Problem, training: Training, seed: int, folder: Path, on_look: Callable[[str], None]) -> Fitted:
    """``train.fit`` that goes on where its folder stands; its parameters as numpy arrays."""

    def on_step(step: int, steps: int, look: Any) -> None:
        if look is not None:
            held = look.validation.get("cross_entropy", look.validation.get("loss"))
            on_look(f"{folder.name}: {step}/{steps}, loss {look.losses['loss']:.3f}" + (f", validation {held:.3f}" if held else ""))

    folder.mkdir(parents=True, exist_ok=True)
    metrics = MetricsLog(folder / "metrics.jsonl")
    found = fit(problem, training, seed, folder / "state", {"name": folder.name, "seed": seed}, sharding.make_mesh(), metrics, on_step)
    return dataclasses.replace(found, params=jax.device_get(found.params))


def pretrained(
    model: Model, texts: Sequence[str], steps: int, rate: float, seed: int, folder: Path, say: Callable[[str], None], row_tokens: int = ROW
) -> Model:
    """The model after ``steps`` steps of 4,096 tokens of running text."""
    rows = running_text(texts, model.tokenizer, seed, row_tokens)
    batch = 32 * ROW // row_tokens
    training = Training(steps=steps, batch_rows=batch, row_tokens=row_tokens, every=100, learning_rate=rate, warmup=0.05, weight_decay=0.1)
    problem = Problem(model.params, [(fine_tuning_loss(model.config, jnp.float32), None)], rows)
    return dataclasses.replace(model, params=trained(problem, training, seed, folder, say).params)
