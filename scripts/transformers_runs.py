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
"""Rows and tokens of a training step."""
DEMONSTRATIONS, STEPS = "gsm8k", 3
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
    """What one step learns: packed rows for ours, padded demonstrations for PyTorch."""

    rows: dict[str, np.ndarray]
    inputs: np.ndarray
    attended: np.ndarray
    labels: np.ndarray


def every_token(tokens: np.ndarray) -> Batch:
    """Rows of whose tokens each next one is learned."""
    inputs, labels = (part.astype(np.int32) for part in (tokens[:, :-1], tokens[:, 1:]))
    columns = np.broadcast_to(np.arange(inputs.shape[1], dtype=np.int32), inputs.shape)
    rows = {"tokens": inputs, "labels": labels, "positions": columns, "query": columns}
    rows |= {"segments": np.zeros_like(inputs), "weights": np.ones(inputs.shape, np.float32)}
    return Batch(rows, inputs, np.ones_like(inputs), labels)


def demonstrations(model: Model) -> list[Batch]:
    """``STEPS`` batches of packed rows, drawn at random, and the demonstrations that lie in them."""
    packed = pack_rows(encode_demonstrations(load_demonstrations(DEMONSTRATIONS), model.tokenizer), TRAINED[1])
    drawn = np.random.default_rng(0).permutation(len(packed))[: STEPS * TRAINED[0]].reshape(STEPS, TRAINED[0])
    return [_padded(packed.batch(numbers)) for numbers in drawn]


def _padded(rows: dict[str, np.ndarray]) -> Batch:
    found = []
    for row in range(len(rows["tokens"])):
        next_token = np.full(TRAINED[1], -100)
        learned = rows["weights"][row] > 0
        next_token[rows["query"][row][learned]] = rows["labels"][row][learned]
        for segment in range(rows["segments"][row].max() + 1):
            there = rows["segments"][row] == segment
            found.append((rows["tokens"][row][there], next_token[there]))
    inputs, attended = (np.zeros((len(found), max(len(tokens) for tokens, _ in found)), int) for _ in range(2))
    labels = np.full_like(inputs, -100)
    for number, (tokens, next_token) in enumerate(found):
        here = number, slice(len(tokens))
        inputs[here], attended[here], labels[here] = tokens, 1, next_token
    return Batch(rows, inputs, attended, labels)


def our_training(model: Model, batches: Sequence[Batch]) -> Callable[[], list[float]]:
    """A step on each batch; the loss of each, before its step."""
    training = Training(
        batch_rows=TRAINED[0], row_tokens=TRAINED[1], learning_rate=RATE, weight_decay=DECAY, clip=CLIP, schedule="constant"
    )
    optimizer = make_optimizer(training, steps=1000)
    step = jax.jit(make_step(fine_tuning_loss(model.config, jnp.float32), optimizer), donate_argnums=0)
    params = jax.tree.map(jnp.array, model.params)
    state = TrainState(params, optimizer.init(params))
    arrays = [jax.device_put({name: array[None] for name, array in batch.rows.items()}) for batch in batches]
    compiled = step.lower(state, None, arrays[0]).compile()
    memory: Any = compiled.memory_analysis()
    print(f"temporaries of our training step: {memory.temp_size_in_bytes / 2**20:,.0f} MiB")

    def run() -> list[float]:
        nonlocal state
        losses = []
        for batch in arrays:
            state, sums = compiled(state, None, batch)
            losses.append(float(sums["loss"] / sums["weight"]))
        return losses

    return run


def theirs(model: Model, prefill: np.ndarray, prompts: np.ndarray, trained: dict[str, Sequence[Batch]]) -> Runs:
    """The same in PyTorch: one candidate, and a training for each list of batches."""
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

    def training(batches: Sequence[Batch]) -> Callable[[], list[float]]:
        model = copy.deepcopy(net)
        optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=DECAY, fused=True)

        def step(batch: Batch) -> float:
            inputs, attended, labels = (torch.tensor(array, dtype=torch.int64) for array in (batch.inputs, batch.attended, batch.labels))
            # Without a mask where there is no padding: attention is faster so.
            logits = model(inputs, attention_mask=None if attended.all() else attended, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.item()

        return lambda: [step(batch) for batch in batches]

    return {"prefill": forward, "candidate": candidate} | {name: training(batches) for name, batches in trained.items()}
