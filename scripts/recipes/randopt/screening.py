#!/usr/bin/env python
"""Screening by one gradient where the whole of a huge population can be run: recall of the true best, and votes at equal cost.

    python scripts/recipes/randopt/screening.py [--seeds 6] [--sigmas 0.5,1,2]

A small network learns the digits of scikit-learn (which must be installed); the task is these digits moved by a pixel, under noise. All N
candidates of rank 1 answer the search images and as many others, which no language model here could afford. So the true top K of N is
known, and three searches can be compared:

- *screened*: one gradient on the search images, products of all N, and ``RUN`` candidates of the highest products are run;
- *plain*: the first candidates of the population, as many as cost the same. By ``searchers.cost`` a product costs what one image's forward
  pass does, and a gradient three of every search image;
- *whole*: all N are run, at many times the cost.

Beside them the gradient step of the best length on the search images, and K candidates at random. The best ``TOP_K`` by the search images
vote on test images. A seed draws the network, the split and the population; intervals are 95 %, Student's t over seeds.
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats
from sklearn.datasets import load_digits  # pyright: ignore[reportMissingImports]

import perturbjax as pj
from perturbjax.noise import coverage, scales
from perturbjax.searchers import gradient_step, inner_products

RUN, TOP_K, IMAGES = 256, 25, 64
HIDDEN, STEPS = 64, 300
SHARES = (RUN, 1_000, 10_000)
"""How many of the highest products are looked through for the true top K."""
LENGTHS = tuple(2.0**n for n in range(-8, 4))
"""Of gradient steps, in lengths of a candidate."""
MEASURES = "log-odds", "accuracy"
Batch = tuple[jax.Array, jax.Array]


def logits(params: Any, images: jax.Array) -> jax.Array:
    for name in ("first", "second"):
        images = jnp.tanh(images @ params[name]["kernel"] + params[name]["bias"][None])
    return images @ params["head"]["kernel"] + params["head"]["bias"][None]


def measured(params: Any, batch: Batch) -> jax.Array:
    """(2,) mean log-odds of the right digit, and accuracy."""
    found, digits = logits(params, batch[0]), batch[1]
    log_probs = jax.nn.log_softmax(found, axis=-1)
    right = jnp.take_along_axis(log_probs, digits[:, None], axis=-1)[:, 0]
    odds = right - jnp.log1p(-jnp.minimum(jnp.exp(right), 1 - 1e-6))
    return jnp.stack([odds.mean(), (found.argmax(-1) == digits).mean()])


def moved(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The task's images: a pixel to the right, under noise."""
    shifted = np.roll(images.reshape(-1, 8, 8), 1, axis=2).reshape(images.shape)
    return (shifted + rng.normal(0, 0.1, images.shape)).astype(np.float32)


def draw(seed: int) -> dict[str, Batch]:
    """Images that share none: of digits as they are to train on, of moved ones to search, to compare and to test on."""
    digits, rng = load_digits(), np.random.default_rng([seed, 0])
    order = rng.permutation(len(digits.target))
    images, labels = (digits.data[order] / 16).astype(np.float32), digits.target[order].astype(np.int32)
    bounds = np.cumsum([0, 800, IMAGES, IMAGES, 800])
    parts = {name: slice(*bounds[n : n + 2]) for n, name in enumerate(("train", "search", "other", "test"))}
    return {
        name: (jnp.asarray(images[part] if name == "train" else moved(images[part], rng)), jnp.asarray(labels[part]))
        for name, part in parts.items()
    }


def pretrain(batch: Batch, seed: int) -> Any:
    widths, keys = (64, HIDDEN, HIDDEN, 10), jax.random.split(jax.random.key(seed), 3)
    params: Any = {
        name: {"kernel": jax.random.normal(key, (rows, columns)) / rows**0.5, "bias": jnp.zeros(columns)}
        for name, key, rows, columns in zip(("first", "second", "head"), keys, widths[:-1], widths[1:], strict=True)
    }
    optimizer = optax.adam(3e-3)

    def loss(params: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, batch[0]), batch[1]).mean()

    def step(carry: Any, _: None) -> tuple[Any, None]:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), None, length=STEPS)[0][0])(params)


def best(scores: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
    """The ``TOP_K`` candidates with the highest scores, of equal ones the first."""
    among = np.arange(len(scores)) if among is None else among
    return among[np.argsort(-scores[among], kind="stable")[:TOP_K]]


def one_seed(seed: int, size: int, sigma: float) -> dict[str, float]:
    """All figures of a seed at a sigma, by name."""
    data, noise = draw(seed), pj.Noise(rank=1, scale="rms")
    params, population = pretrain(data["train"], seed), pj.Population(seed=seed, size=size, sigmas=(sigma,))
    batches = data["search"], data["other"]
    scorer = pj.Scorer(lambda params, data: jnp.stack([measured(params, each) for each in data]), params, noise, chunk=2048, in_flight=64)
    table = np.asarray(scorer(population[:], batches))  # (N, search or other, measure)
    leaf_scales = scales(params, noise)
    gradient = jax.grad(lambda params: measured(params, data["search"])[0])(params)
    products = inner_products(gradient, population, noise, leaf_scales)
    ranked, plain = np.argsort(-products), RUN + (size + 3 * IMAGES) // IMAGES
    rows: dict[str, float] = {"plain runs": plain}
    for place, questions in enumerate(("search", "other")):
        for number, measure in enumerate(MEASURES):
            truth = set(best(table[:, place, number]).tolist())
            for share in SHARES:
                rows[f"recall, {measure} on {questions} images, {share}"] = len(truth & set(ranked[:share].tolist())) / TOP_K

    def vote(members: np.ndarray) -> float:
        answers = pj.Ensemble(population, members, noise, params).apply(
            lambda params, images: logits(params, images).argmax(-1), params, data["test"][0]
        )
        return float((pj.vote(answers) == data["test"][1]).mean())

    accuracy = partial(lambda batch, params: float(measured(params, batch)[1]), data["test"])
    rows["base"] = accuracy(params)
    rows["at random"] = vote(np.random.default_rng([seed, 1]).choice(size, TOP_K, replace=False))
    for number, measure in enumerate(MEASURES):
        scores = table[:, 0, number]
        rows[f"screened, by {measure}"] = vote(best(scores, ranked[:RUN]))
        rows[f"plain, by {measure}"] = vote(best(scores, np.arange(plain)))
        rows[f"whole, by {measure}"] = vote(best(scores))
    length = sigma * coverage(params, noise).moved ** 0.5
    steps = [gradient_step(params, gradient, leaf_scales, part * length) for part in LENGTHS]
    rows["gradient step"] = accuracy(max(steps, key=lambda step: float(measured(step, data["search"])[0])))
    return rows


def estimate(values: Sequence[float]) -> str:
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return f"{np.mean(values):7.3f} ± {half:.3f}"


def report(found: Mapping[float, Sequence[Mapping[str, float]]]) -> None:
    first = next(iter(found.values()))[0]
    print(f"{'sigma':44}" + "".join(f"{sigma:>17}" for sigma in found))
    for name in first:
        print(f"{name:44}" + "".join(f"{estimate([row[name] for row in rows]):>17}" for rows in found.values()))
    print("screened less the other, the same measure and seeds")
    for measure in MEASURES:
        for other in (f"plain, by {measure}", f"whole, by {measure}", "gradient step", "at random", "base"):
            gains = [[row[f"screened, by {measure}"] - row[other] for row in rows] for rows in found.values()]
            print(f"{f'by {measure}, less {other}':44}" + "".join(f"{estimate(gain):>17}" for gain in gains))


def numbers(text: str) -> tuple[float, ...]:
    found = tuple(dict.fromkeys(map(float, text.split(","))))
    if not all(0 < number < 1e6 for number in found):
        raise ValueError
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--seeds", type=int, default=6, help="how many (default: %(default)s)")
    parser.add_argument("--first-seed", type=int, default=0, help="sigmas are looked at on other seeds than those of the result")
    parser.add_argument("--population", type=int, default=100_000, help="N (default: %(default)s)")
    parser.add_argument("--sigmas", type=numbers, default="0.5,1,2", help="relative to each leaf's root mean square (default: %(default)s)")
    args = parser.parse_args()
    if args.seeds < 1 or args.first_seed < 0 or args.population < RUN:
        parser.error(f"at least 1 of --seeds, 0 of --first-seed and {RUN} of --population are required, those that are run")
    found: dict[float, list[dict[str, float]]] = {}
    for sigma in args.sigmas:
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            found.setdefault(sigma, []).append(one_seed(seed, args.population, sigma))
            print(f"  sigma {sigma}, seed {seed} is done", flush=True)
    report(found)


if __name__ == "__main__":
    main()
