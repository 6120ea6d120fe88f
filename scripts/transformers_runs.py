"""What ``bench_transformers.py`` times: ours, PyTorch's, and the batches that both train on."""

import copy
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax import sharding
from perturbjax._compat import compiler_options
from perturbjax.inference.programs import batch_prompts, generate_replies
from perturbjax.models.attention import causal_mask
from perturbjax.models.decoder import decoder_from_params
from perturbjax.models.noise_groups import decoder_noise
from perturbjax.noise import Noise, Population
from perturbjax.pretrained import Model
from perturbjax.pretrained.export import export_safetensors
from perturbjax.scoring import ChunkProgram
from perturbjax.train import Training
from perturbjax.train.demonstrations import encode_demonstrations, load_demonstrations
from perturbjax.train.language import fine_tuning_loss
from perturbjax.train.optimizer import make_optimizer
from perturbjax.train.rows import pack_rows
from perturbjax.train.step import TrainState, make_step

ROWS, PREFILL, PROMPT, REPLY = 32, 96, 64, 32
TRAINED = 4, 256
"""Rows and tokens of a training step where every token is learned."""
DEMONSTRATIONS = "gsm8k"
PER_PASS = 8
"""Demonstrations that transformers' ``Trainer`` sends through a model at a time unless told otherwise."""
RATE, DECAY, CLIP = 1e-4, 0.01, 1.0
SIGMA = 1e-3
CANDIDATES = 2
"""Scored in one call of ours, as a chunk."""
NOISES = {"gaussian": Noise("gaussian"), "rademacher": Noise("rademacher"), "gaussian rank 1": decoder_noise(rank=1)}
Runs = dict[str, Callable[[], Any]]


def ours(model: Model, prefill: np.ndarray, prompts: np.ndarray) -> Runs:
    """What we time, by name; each does the work once, a candidate row for ``CANDIDATES`` of them."""

    def forward(params, tokens):
        decoder = decoder_from_params(model.config, params)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
        hidden, _ = decoder(tokens, positions, causal_mask(jnp.ones(tokens.shape, bool)))
        return decoder.logits(hidden[:, -1])

    params = jax.device_put(model.params)
    first = jax.jit(forward, compiler_options=compiler_options(jax.default_backend()))
    runs: Runs = {"prefill": lambda: np.asarray(first(params, jnp.asarray(prefill)))}
    data = batch_prompts([], prompts.tolist())
    fn = generate_replies(model.config, REPLY, (), sample=False)
    candidates = Population(seed=0, size=CANDIDATES, sigmas=(SIGMA,))[:]
    for name, noise in NOISES.items():
        program = ChunkProgram(fn, params, noise, sharding.make_mesh(), CANDIDATES)
        runs[name] = lambda program=program: program(candidates, data)
    return runs


@dataclass(frozen=True)
class Batch:
    """What one step learns: packed rows for ours; for PyTorch the tokens of each example, and the next ones, -100 where not learned."""

    rows: dict[str, np.ndarray]
    examples: list[tuple[np.ndarray, np.ndarray]]


def every_token(tokens: np.ndarray) -> Batch:
    """Rows of whose tokens each next one is learned."""
    inputs, labels = (part.astype(np.int32) for part in (tokens[:, :-1], tokens[:, 1:]))
    columns = np.broadcast_to(np.arange(inputs.shape[1], dtype=np.int32), inputs.shape)
    rows = {"tokens": inputs, "labels": labels, "positions": columns, "query": columns}
    rows |= {"segments": np.zeros_like(inputs), "weights": np.ones(inputs.shape, np.float32)}
    return Batch(rows, list(zip(inputs, labels, strict=True)))


def demonstrations(model: Model) -> Batch:
    """Packed rows of the default size of a training, drawn at random, and the demonstrations that lie in them."""
    packed = pack_rows(encode_demonstrations(load_demonstrations(DEMONSTRATIONS), model.tokenizer), Training().row_tokens)
    rows = packed.batch(np.random.default_rng(0).permutation(len(packed))[: Training().batch_rows])
    examples = []
    for row in range(len(rows["tokens"])):
        next_token = np.full(Training().row_tokens, -100)
        learned = rows["weights"][row] > 0
        next_token[rows["query"][row][learned]] = rows["labels"][row][learned]
        for segment in range(rows["segments"][row].max() + 1):
            there = rows["segments"][row] == segment
            examples.append((rows["tokens"][row][there], next_token[there]))
    return Batch(rows, examples)


def padded(examples: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, what of them is no padding, and labels: (B, longest) int64 each."""
    shape = len(examples), max(len(tokens) for tokens, _ in examples)
    inputs, attended, labels = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.full(shape, -100)
    for number, (tokens, next_token) in enumerate(examples):
        here = number, slice(len(tokens))
        inputs[here], attended[here], labels[here] = tokens, 1, next_token
    return inputs, attended, labels


def our_training(model: Model, batch: Batch) -> Callable[[], float]:
    """A step; its loss, before it."""
    training = Training(learning_rate=RATE, weight_decay=DECAY, clip=CLIP, schedule="constant")
    optimizer = make_optimizer(training, steps=1000)
    step = jax.jit(make_step(fine_tuning_loss(model.config, jnp.float32), optimizer), donate_argnums=0)
    params = jax.tree.map(jnp.array, model.params)
    state = TrainState(params, optimizer.init(params))
    arrays = jax.device_put({name: array[None] for name, array in batch.rows.items()})
    compiled = step.lower(state, None, arrays).compile()
    memory: Any = compiled.memory_analysis()
    print(f"temporaries of our training step: {memory.temp_size_in_bytes / 2**20:,.0f} MiB")

    def run() -> float:
        nonlocal state
        state, sums = compiled(state, None, arrays)
        return float(sums["loss"] / sums["weight"])

    return run


def head_product(model: Model) -> tuple[np.ndarray, np.ndarray]:
    """The largest matrix product of a forward pass: hidden states of a step where every token is learned, and the head (V, D)."""
    rng, width = np.random.default_rng(0), model.config.hidden_size
    hidden = rng.standard_normal((TRAINED[0] * TRAINED[1], width), np.float32)
    return hidden, rng.standard_normal((model.config.vocab_size, width), np.float32)


def our_product(model: Model) -> Callable[[], None]:
    hidden, head = jax.device_put(head_product(model))
    compiled = jax.jit(lambda hidden, head: hidden @ head.T)

    def product() -> None:
        compiled(hidden, head).block_until_ready()

    return product


def theirs(model: Model, prefill: np.ndarray, prompts: np.ndarray, trained: dict[str, Batch]) -> Runs:
    """The same in PyTorch: one candidate, a step of training on each batch, and one in parts for demonstrations."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import AutoModelForCausalLM, GenerationConfig  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory() as folder:
        saved = export_safetensors(model, model.params, Path(folder) / "base")
        net = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32, attn_implementation="sdpa").eval()
    base = [weight.detach().clone() for weight in net.parameters()]
    settings = GenerationConfig(max_new_tokens=REPLY, do_sample=False, use_cache=True, pad_token_id=0)
    first, ids = torch.tensor(prefill), torch.tensor(prompts)
    seeds = iter(range(1_000_000))

    @torch.inference_mode()
    def forward() -> Any:
        return net(first, logits_to_keep=1, use_cache=True).logits[:, -1].numpy()

    @torch.inference_mode()
    def candidate() -> Any:
        generator = torch.Generator().manual_seed(next(seeds))
        for weight in net.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=SIGMA)
        replies = net.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        for weight, original in zip(net.parameters(), base, strict=True):
            weight.copy_(original)
        return replies[:, PROMPT:].numpy()

    def training(batch: Batch, per_pass: int) -> Callable[[], float]:
        model = copy.deepcopy(net)
        optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY, fused=True)
        learned = sum(int((labels != -100).sum()) for _, labels in batch.examples)

        def gradient(part: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
            inputs, attended, labels = map(torch.tensor, padded(part))
            # Without a mask where there is no padding: attention is faster so.
            logits = model(inputs, attention_mask=None if attended.all() else attended, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / learned
            loss.backward()
            return loss.item()

        def step() -> float:
            loss = sum(gradient(batch.examples[start : start + per_pass]) for start in range(0, len(batch.examples), per_pass))
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss

        return step

    hidden, head = map(torch.tensor, head_product(model))

    @torch.inference_mode()
    def product() -> None:
        torch.matmul(hidden, head.T)

    runs = {name: training(batch, len(batch.examples)) for name, batch in trained.items()}
    if "demonstrations" in trained:
        runs["in parts"] = training(trained["demonstrations"], PER_PASS)
    return {"prefill": forward, "candidate": candidate, "product": product, **runs}
