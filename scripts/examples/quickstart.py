"""RandOpt in ten lines, and the same lines around a language model: python scripts/examples/quickstart.py [MODEL]

First a model of plain functions at random weights: which of three features, each with a nuisance added, is largest? With MODEL (a Hugging
Face directory, a GGUF file or a hub id) then a decoder: does the next word say yes or no after a good or a bad word? No gradient is taken.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp

import perturbjax as pj


def searched(predict: Any, params: Any, x: jax.Array, labels: jax.Array, population: pj.Population, noise: pj.Noise) -> tuple[float, float]:
    """The accuracy of a model and of the vote of its best neighbors, on the half of the rows that chose none of them."""
    half = len(x) // 2
    scorer = pj.Scorer(lambda params, batch: (predict(params, batch[0]) == batch[1]).mean(), params, noise)  # compiles once
    scores = scorer(population[:], (x[:half], labels[:half]))  # (N,)
    members = pj.Ensemble(population, pj.top_k(scores, 15), noise, params)
    voted = pj.vote(members.apply(predict, params, x[half:]))  # (15, rows) -> (rows,)
    return float((predict(params, x[half:]) == labels[half:]).mean()), float((voted == labels[half:]).mean())


def features() -> tuple[float, float]:
    """A linear model."""
    x = jax.random.normal(jax.random.key(1), (200, 16))
    labels = (x[:, :3] + 0.5 * x[:, 3:6]).argmax(-1)
    params = {"w": jax.random.normal(jax.random.key(0), (16, 3)) * 0.1, "b": jnp.zeros(3)}
    population = pj.Population(seed=0, size=1000, sigmas=(0.1, 0.2))  # a candidate is a key and a sigma
    return searched(lambda params, x: (x @ params["w"] + params["b"]).argmax(-1), params, x, labels, population, pj.Noise())


def words(path: str) -> tuple[float, float]:
    """A language model: ``Decoder`` is a function of its parameters like any other."""
    from perturbjax.models.attention import causal_mask
    from perturbjax.pretrained import load_model

    model = load_model(path)
    encode, config = model.tokenizer.encode, model.config
    pairs = (("good", "bad"), ("right", "wrong"), ("true", "false"), ("up", "down"), ("light", "dark"), ("hot", "cold"))
    starts = ("It is", "so, it was", "I think that it is", "they said it is")
    rows = [(encode(f"{start} {word}"), label) for pair in pairs for label, word in enumerate(pair) for start in starts]
    width = max(len(tokens) for tokens, _ in rows)
    # Left-padded, so that the last token of each row is its last word.
    x = jnp.array([[0] * (width - len(tokens)) + tokens for tokens, _ in rows])
    labels = jnp.array([label for _, label in rows])
    answers = jnp.array([encode(" yes")[-1], encode(" no")[-1]])

    def predict(params: Any, x: jax.Array) -> jax.Array:
        decoder = config.build(params)
        hidden, _ = decoder(x, jnp.arange(width)[None], causal_mask(x > 0))
        return decoder.logits(hidden)[:, -1, answers].argmax(-1)

    order = jax.random.permutation(jax.random.key(2), len(rows))
    # A sigma of 0.5 moves a weight by half of what is typical of its matrix: for random weights. Trained ones want about 0.001, absolute.
    population = pj.Population(seed=0, size=96, sigmas=(0.2, 0.5))
    return searched(predict, model.params, x[order], labels[order], population, pj.Noise("rademacher", scale="rms"))


def main(*models: str) -> None:
    for what, (base, vote) in (("features", features()), *((path, words(path)) for path in models)):
        print(what)
        print(f"base            {base:.3f}")
        print(f"vote of the 15  {vote:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
