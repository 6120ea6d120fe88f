"""RandOpt around a decoder of tunix (pip install google-tunix), at random weights: python scripts/examples/tunix_model.py

The task is a toy: do 8 tokens end on one of the upper half? The logits of two tokens after them are the answer. Trained weights come from
tunix's own loaders; the rest stays as it is here.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tunix.models.llama3.model import Llama3, ModelConfig  # pyright: ignore[reportMissingImports]

import perturbjax as pj

CONFIG = ModelConfig(
    num_layers=2,
    vocab_size=32,
    embed_dim=32,
    hidden_dim=64,
    num_heads=4,
    head_dim=8,
    num_kv_heads=2,
    rope_theta=10_000,
    norm_eps=1e-5,
    weight_tying=True,
)
LENGTH, NO, YES = 8, 30, 31


def questions(seed: int, count: int) -> tuple[jax.Array, jax.Array]:
    """Tokens (count, 8) and the token of the right answer (count,)."""
    tokens = np.random.default_rng(seed).integers(0, NO, (count, LENGTH))
    return jnp.asarray(tokens), jnp.asarray(np.where(tokens[:, -1] >= NO // 2, YES, NO))


def main() -> None:
    # The graph is structure; the state of nnx.Param is a pytree, and what a search moves.
    graph, params = nnx.split(Llama3(CONFIG, rngs=nnx.Rngs(0)), nnx.Param)
    mask = jnp.tril(jnp.ones((1, LENGTH, LENGTH), bool))

    def answers(params: Any, tokens: jax.Array) -> jax.Array:
        positions = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)
        logits, _ = nnx.merge(graph, params)(tokens, positions, None, mask)
        return jnp.where(logits[:, -1, YES] > logits[:, -1, NO], YES, NO)

    def right(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        return (answers(params, batch[0]) == batch[1]).mean()

    noise = pj.Noise("rademacher", scale="rms")
    population = pj.Population(seed=2, size=96, sigmas=(0.2, 0.5))
    search, test = questions(0, 128), questions(1, 512)

    # Where noise is made; strict=True would refuse a matrix that is perturbed whole.
    print(pj.lazily(right, strict=True).usage(pj.lazy(params, population[0], noise), search))
    one = jax.jit(pj.perturbed(answers, noise))(population[3], params, test[0])
    dense = jax.jit(answers)(pj.perturb(params, population[3], noise), test[0])
    print("candidate 3 answers as its dense weights do:", bool((one == dense).all()))

    scorer = pj.Scorer(right, params, noise)
    members = pj.Ensemble(population, pj.top_k(scorer(population[:], search), 15), noise, params)
    vote = pj.vote(members.apply(answers, params, test[0]))
    print(f"base            {float(right(params, test)):.3f}")
    print(f"vote of the 15  {float((vote == test[1]).mean()):.3f}")


if __name__ == "__main__":
    main()
