"""RandOpt around an Equinox model, and what lazy evaluation did with its parameters: python scripts/examples/equinox_model.py

The task is a toy: tell from 12 tokens whether 3 occurs more often than 5. The base is left at random weights, so all that is learned comes
from choosing among perturbations.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import perturbjax as pj

VOCABULARY, WIDTH = 8, 16


class Counter(eqx.Module):
    embed: eqx.nn.Embedding
    mix: eqx.nn.MLP
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array):
        keys = jax.random.split(key, 3)
        self.embed = eqx.nn.Embedding(VOCABULARY, WIDTH, key=keys[0])
        self.mix = eqx.nn.MLP(WIDTH, WIDTH, 32, 1, key=keys[1])
        self.head = eqx.nn.Linear(WIDTH, 1, key=keys[2])

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logit of "3 is more frequent" for one row of tokens."""
        return self.head(self.mix(jax.vmap(self.embed)(tokens).mean(0)))[0]


def questions(seed: int, count: int) -> tuple[jax.Array, jax.Array]:
    """Tokens (count, 12) and answers (count,); ties are left out."""
    tokens = np.random.default_rng(seed).integers(0, VOCABULARY, (count * 2, 12))
    threes, fives = (tokens == 3).sum(1), (tokens == 5).sum(1)
    kept = np.flatnonzero(threes != fives)[:count]
    return jnp.asarray(tokens[kept]), jnp.asarray((threes > fives)[kept])


def main() -> None:
    # Arrays are what a search moves; functions and sizes stay outside.
    params, static = eqx.partition(Counter(jax.random.key(0)), eqx.is_array)

    def answers(params, tokens):
        return jax.vmap(eqx.combine(params, static))(tokens) > 0

    def score(params, batch):
        tokens, expected = batch
        return (answers(params, tokens) == expected).mean()

    noise = pj.Noise("gaussian", scale="rms", rules=(pj.Rule("bias", None),))
    population = pj.Population(seed=1, size=1024, sigmas=(0.5, 1.0))
    search, test = questions(0, 256), questions(1, 1024)
    print(pj.lazily(score).usage(pj.lazy(params, population[0], noise), search))

    scores = pj.score_population(score, params, population, noise, search, strategy="lazy", in_flight=16)
    members = pj.Ensemble(population, pj.top_k(scores, 9), noise, params)
    votes = members.apply(answers, params, test[0]).mean(0) > 0.5
    print(f"base           {float(score(params, test)):.3f}")
    print(f"vote of the 9  {float((votes == test[1]).mean()):.3f}")


if __name__ == "__main__":
    main()
