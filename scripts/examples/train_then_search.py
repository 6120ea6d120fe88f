"""``train.py`` with a RandOpt search after the training; compare the two files. python scripts/examples/train_then_search.py"""

import jax
import jax.numpy as jnp
import optax

import perturbjax as pj


def spirals(key, count):
    noise, place = jax.random.split(key)
    arm, radius = jnp.arange(count) % 3, jax.random.uniform(place, (count,), minval=0.2)
    angle = 4.0 * radius + arm * (2 * jnp.pi / 3) + 0.25 * jax.random.normal(noise, (count,))
    return jnp.stack([radius * jnp.cos(angle), radius * jnp.sin(angle)], axis=1), arm


def init(key, sizes=(2, 64, 64, 3)):
    keys = jax.random.split(key, len(sizes))
    return [
        {"w": jax.random.normal(k, (n, m)) / jnp.sqrt(n), "b": jnp.zeros((1, m))} for k, n, m in zip(keys, sizes, sizes[1:], strict=False)
    ]


def logits(params, x):
    for layer in params[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def loss(params, x, y):
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()


def accuracy(params, x, y):
    return (logits(params, x).argmax(axis=-1) == y).mean()


def main():
    keys = jax.random.split(jax.random.key(0), 4)
    train, test, search = spirals(keys[0], 300), spirals(keys[1], 3000), spirals(keys[3], 600)
    params = init(keys[2])
    optimizer = optax.adam(3e-3)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params, *train), state)
        return optax.apply_updates(params, updates), state

    for _ in range(150):
        params, state = step(params, state)
    print(f"trained        {accuracy(params, *test):.3f}")

    noise = pj.Noise(scale="rms")
    population = pj.Population(seed=0, size=512, sigmas=(0.05, 0.1, 0.2))
    scores = pj.score_population(lambda params, data: accuracy(params, *data), params, population, noise, search)
    members = pj.Ensemble(population, pj.top_k(scores, 15), noise, params)
    voted = pj.vote(members.apply(logits, params, test[0]).argmax(axis=-1))
    print(f"vote of 15     {(voted == test[1]).mean():.3f}")


if __name__ == "__main__":
    main()
