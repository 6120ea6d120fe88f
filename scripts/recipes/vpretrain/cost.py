"""What steering costs, on text and on images: step time and memory beside plain pretraining, a value by one jvp beside double backward.

    python scripts/recipes/vpretrain/cost.py

All programs of a kind take turns in one process, on weights that are made up; medians of the rounds' ratios. Memory is the compiler's:
temporaries of a program, and for the first row arguments too, of which the designer and its moments are a part.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax.bench.values import shape
from perturbjax.models.config import DecoderConfig, param_shapes
from perturbjax.models.vit import ViTConfig
from perturbjax.runs.compile_cache import use_compile_cache
from perturbjax.runs.console import Console
from perturbjax.train import Training
from perturbjax.train.optimizer import learning_rates, make_optimizer
from perturbjax.train.step import TrainState, make_step
from perturbjax.tree import nest
from perturbjax.vpretrain.designer import TopKDesigner
from perturbjax.vpretrain.dino import Dino
from perturbjax.vpretrain.masks import MaskDesigner
from perturbjax.vpretrain.steering import Steering, designer_auxiliary
from perturbjax.vpretrain.text import Designed, Learner, TextTask, candidate_log_probs, designed_loss
from perturbjax.vpretrain.value import dot, make_subset
from perturbjax.vpretrain.views import Views
from perturbjax.vpretrain.vision import VisionTask, learner_loss, with_teacher

Programs = dict[str, tuple[Any, tuple[Any, ...]]]
"""Name -> compiled program and its arguments."""


@dataclass(frozen=True)
class Sizes:
    """Shapes: the learner, the designer's width and layers, rows of the corpus and of feedback, their tokens, candidates, meta period."""

    learner: DecoderConfig
    hidden: int = 64
    layers: int = 2
    rows: int = 4
    feedback_rows: int = 2
    tokens: int = 128
    candidates: int = 64
    every: int = 8


@dataclass(frozen=True)
class VisionSizes:
    """Shapes: the student, rows of images and of feedback, the meta period."""

    vit: ViTConfig
    rows: int = 16
    feedback_rows: int = 8
    every: int = 8


SMOLLM2 = Sizes(shape(49152, 576, 30, 1536, 9, 3, True), hidden=256)
"""SmolLM2-135M, all of it trained, with the designer of ``text.py``."""
SIZES, VISION = Sizes(shape(8192, 256, 12, 704, 4, 2, True)), VisionSizes(ViTConfig(image=64, patch=8, hidden=192, layers=12, heads=3))


def text_programs(sizes: Sizes) -> Programs:
    config, rng = sizes.learner, np.random.default_rng(0)
    learner = Learner(config, jnp.float32)
    params = nest({path: jnp.asarray(rng.normal(0, 0.02, dims), jnp.float32) for path, dims in param_shapes(config).items()})
    designer = TopKDesigner(config.vocab_size, sizes.candidates, sizes.hidden, sizes.layers, 4)
    task = TextTask(learner, designer, make_subset(params, 2), {"feedback": 1.0})
    training = Training(steps=100)
    optimizer = make_optimizer(training, 100)
    state = TrainState(params, jax.jit(optimizer.init)(params))

    def rows(count: int) -> dict[str, jax.Array]:
        def integers(high: int) -> jax.Array:
            return jnp.asarray(rng.integers(0, high, (1, count, sizes.tokens)), jnp.int32)

        places = jnp.broadcast_to(jnp.arange(sizes.tokens, dtype=jnp.int32)[None, None], (1, count, sizes.tokens))
        found = {"tokens": integers(config.vocab_size), "labels": integers(config.vocab_size), "positions": places, "query": places}
        return found | {"segments": jnp.zeros_like(places), "weights": jnp.ones(places.shape, jnp.float32)}

    batch, feedback = rows(sizes.rows), {"feedback": rows(sizes.feedback_rows)}
    steering = Steering(every=sizes.every, probe=False)
    auxiliary = designer_auxiliary(task, steering, designer.init(0), lambda step: {}, learning_rates(training, 100))
    designed = make_step(designed_loss(learner, sizes.candidates, Designed(designer)), optimizer)
    first = {name: array[0] for name, array in batch.items()}
    direction = {path: jnp.full(leaf.shape, 1e-3) for path, leaf in task.subset.take(params).items()}

    def by_jvp(phi: Any, params: Any) -> Any:
        def value(phi: Any) -> jax.Array:
            return task.value(phi, params, None, prepared)["value"]

        prepared = task.prepare(params, None, direction, first)
        return jax.value_and_grad(value)(phi)

    def double(phi: Any, params: Any) -> Any:
        def loss(part: Any, phi: Any) -> jax.Array:
            fn = candidate_log_probs(learner, sizes.candidates, None, task.subset)
            log_probs, ids = fn(task.subset.put(params, part), first)
            prepared = first | {"scores": -log_probs, "log_probs": jax.lax.stop_gradient(log_probs), "ids": ids}
            return task.value(phi, params, None, prepared)["value"]

        return jax.value_and_grad(lambda phi: dot(direction, jax.grad(loss)(task.subset.take(params), phi)))(phi)

    phi = jax.tree.map(jnp.asarray, designer.init(0))
    return compiled(
        plain=(make_step(learner.plain_loss(), optimizer), (state, None, batch)),
        designed=(designed, (state, (None, auxiliary.state), batch)),
        update=(auxiliary.update, (auxiliary.state, state, None, batch, feedback, jnp.int32(1))),
        jvp=(by_jvp, (phi, params)),
        double=(double, (phi, params)),
    )


def vision_programs(sizes: VisionSizes) -> Programs:
    vit, rng, classes = sizes.vit, np.random.default_rng(0), 11
    learner, designer = Dino(vit, Views(local=vit.image // 2)), MaskDesigner(vit.patch)
    student = jax.tree.map(jnp.asarray, learner.init(0))
    task = VisionTask(learner, designer, make_subset(student, 2), classes, {"segmentation": 1.0, "depth": 1.0})
    optimizer = make_optimizer(Training(steps=100), 100)
    state = TrainState(student, jax.jit(optimizer.init)(student))

    def rows(count: int) -> dict[str, jax.Array]:
        patches = (1, count, vit.grid**2)
        images = jnp.asarray(rng.random((1, count, vit.image, vit.image, vit.channels), np.float32))
        labels = jnp.asarray(rng.integers(0, classes, patches), jnp.int32), jnp.asarray(rng.random(patches, np.float32))
        return {"image": images, "row": jnp.arange(count, dtype=jnp.int32)[None], "classes": labels[0], "depth": labels[1]}

    batch, feedback = rows(sizes.rows), {name: rows(sizes.feedback_rows) for name in ("train", "meta")}
    phi, rates = jax.tree.map(jnp.asarray, designer.init(0)), learning_rates(Training(steps=100), 100)
    steering = designer_auxiliary(task, Steering(every=sizes.every, probe=False), phi, lambda step: {}, rates)
    auxiliary = with_teacher(learner, steering, student)
    prepared = jax.jit(auxiliary.prepare)(auxiliary.state, None, batch)
    first = jax.tree.map(lambda array: array[0], prepared)
    direction = {path: jnp.full(leaf.shape, 1e-3) for path, leaf in task.subset.take(student).items()}

    def by_jvp(phi: Any, student: Any) -> Any:
        given = task.prepare(student, None, direction, first)
        return jax.value_and_grad(lambda phi: task.value(phi, student, None, given)["value"])(phi)

    def double(phi: Any, student: Any) -> Any:
        def loss(part: Any, phi: Any) -> jax.Array:
            return task.designed_loss(task.subset.put(student, part), None, phi, first)["loss"]

        return jax.value_and_grad(lambda phi: dot(direction, jax.grad(loss)(task.subset.take(student), phi)))(phi)

    given = (None, auxiliary.state)
    return compiled(
        prepare=(auxiliary.prepare, (auxiliary.state, None, batch)),
        plain=(make_step(learner_loss(learner, None), optimizer), (state, given, prepared)),
        designed=(make_step(learner_loss(learner, designer), optimizer), (state, given, prepared)),
        update=(auxiliary.update, (auxiliary.state, state, None, prepared, feedback, jnp.int32(1))),
        jvp=(by_jvp, (phi, student)),
        double=(double, (phi, student)),
    )


def compiled(**calls: tuple[Callable[..., Any], tuple[Any, ...]]) -> Programs:
    return {name: (jax.jit(fn).lower(*given).compile(), given) for name, (fn, given) in calls.items()}


KINDS: dict[str, tuple[Any, Callable[[Any], Programs]]] = {
    "text": (SIZES, text_programs),
    "vision": (VISION, vision_programs),
    "smollm2": (SMOLLM2, text_programs),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("kinds", nargs="*", choices=KINDS, metavar="KIND", help=f"{', '.join(KINDS)} (default: text and vision)")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default: %(default)s)")
    args = parser.parse_args()
    use_compile_cache("auto", Console())
    for kind in args.kinds or ("text", "vision"):
        sizes, programs = KINDS[kind]
        report(sizes, programs(sizes), args.rounds)
    return 0


def report(sizes: Sizes | VisionSizes, found: Programs, count: int) -> None:
    """Times the programs of a kind in ``count`` rounds, and prints the ratios."""
    rounds, memory = [], {name: program.memory_analysis() for name, (program, _) in found.items()}
    for number in range(count + 1):
        seconds = {}
        for name in list(found)[:: 1 if number % 2 == 0 else -1]:
            program, given = found[name]
            started = time.process_time()
            jax.block_until_ready(program(*given))
            seconds[name] = time.process_time() - started
        rounds.append(seconds)
    rounds = rounds[1:]  # the first one warms up

    def ratio(of: Callable[[dict[str, float]], float]) -> str:
        values = [of(seconds) for seconds in rounds]
        return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"

    def step(seconds: dict[str, float], name: str) -> float:
        """With what is prepared for a step, and for the update before it, if anything is."""
        return seconds.get("prepare", 0.0) + seconds[name]

    every = sizes.every
    a, b = learner_bytes(memory, "plain"), max(learner_bytes(memory, name) for name in ("designed", "update"))
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, {sizes}; seconds of CPU, {count} rounds")
    steered = ratio(lambda s: (step(s, "designed") + s["update"] / every) / step(s, "plain"))
    print(f"step, r = {every}: steered / plain            {steered}")
    print(f"  designed step / plain step             {ratio(lambda s: step(s, 'designed') / step(s, 'plain'))}")
    print(f"  update / plain step                    {ratio(lambda s: s['update'] / step(s, 'plain'))}")
    print(f"memory: steered / plain                  {b / a:.3f} ({b / 2**20:.0f} and {a / 2**20:.0f} MiB)")
    print(f"value and designer gradient: jvp / double backward, time    {ratio(lambda s: s['jvp'] / s['double'])}")
    one, two = memory["jvp"].temp_size_in_bytes, memory["double"].temp_size_in_bytes
    print(f"the same, temporaries                    {one / two:.3f} ({one / 2**20:.0f} and {two / 2**20:.0f} MiB)")


def learner_bytes(memory: dict[str, Any], name: str) -> int:
    return memory[name].temp_size_in_bytes + memory[name].argument_size_in_bytes


if __name__ == "__main__":
    raise SystemExit(main())
