"""V-Pretraining on scenes: segmentation and depth of a few of them steer where a student of self-distillation is masked.

    python scripts/recipes/vpretrain/vision.py --out /tmp/vision --seeds 5

Scenes are digits of scikit-learn, or the figures of ``--figures NAME`` from datasets, on textures. Unlabelled scenes, feedback, the probes'
training scenes and their test scenes share no figure. Arms: step 0, plain self-distillation, random masks, masks of a designer that follows
the value, and, where named, one that follows a random direction; the same student, scenes and steps, paired by seed. Measured on the frozen
student: a linear probe of the class, dense probes of segmentation and depth. The folder holds what is done and is continued; in it are
results.json and masks.png.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scenes import CLASSES, Figures, compose, pixels, read_figures
from scipy import stats

from perturbjax import sharding
from perturbjax.models.vit import ViTConfig
from perturbjax.records import from_json
from perturbjax.report.figure import save
from perturbjax.runs.compile_cache import use_compile_cache
from perturbjax.runs.console import Console
from perturbjax.runs.files import MetricsLog, read_json, write_json
from perturbjax.train import Training
from perturbjax.train.loop import fit
from perturbjax.train.optimizer import learning_rates
from perturbjax.train.problem import Fitted
from perturbjax.vpretrain.dino import Dino
from perturbjax.vpretrain.images import Images
from perturbjax.vpretrain.masks import MaskDesigner
from perturbjax.vpretrain.results import correlation, probe_pairs
from perturbjax.vpretrain.steering import Steering
from perturbjax.vpretrain.value import make_subset
from perturbjax.vpretrain.views import Views
from perturbjax.vpretrain.vision import LinearHead, VisionExperiment, VisionMode, VisionTask, dense_losses

START = "step 0"
ARMS: dict[str, VisionMode] = {"plain": "plain", "random masks": "random_masks", "value": "value", "random direction": "random"}
FIGURE_CLASSES = 10
BETTER = {"class_accuracy": 1, "segmentation": 1, "miou": 1, "depth": -1}
"""What is measured, and whether more or less of it is better."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the experiment.

    Those of self-distillation were chosen by the probes of plain self-distillation against those of step 0, on seed 100 and checked on
    seed 101. A lower rate gained less, and in batches of 32 a gain in depth or segmentation cost the other.

    Attributes:
        side, patch, hidden, layers, heads: of the student; values look at its last ``subset`` layers.
        scenes, feedback, probe, test: how many there are, of feedback for heads and for g_down each.
        steps, batch, rate: of the student.
        designer_rate, every, feedback_rows: of the updates.
        ratio: of masks.
        momentum, teacher_temperature: of self-distillation.
        jitter, locals, smallest: of views: change of colors, small views, and the smallest share of the image that a large one shows.
    """

    side: int = 32
    patch: int = 4
    hidden: int = 48
    layers: int = 3
    heads: int = 3
    subset: int = 2
    scenes: int = 4096
    feedback: int = 128
    probe: int = 512
    test: int = 512
    steps: int = 200
    batch: int = 64
    rate: float = 5e-3
    designer_rate: float = 3e-3
    every: int = 4
    feedback_rows: int = 32
    ratio: float = 0.3
    momentum: float = 0.95
    teacher_temperature: float = 0.03
    jitter: float = 0.8
    locals: int = 0
    smallest: float = 0.5


@dataclass(frozen=True)
class Row:
    """One arm of one seed: accuracy of the class, accuracy and mean intersection over union of patches, mean absolute error of depth. Of
    a designer: r of predicted and realized falls, by the whole step and by the value alone; mean mask of the patches of figures."""

    class_accuracy: float
    segmentation: float
    miou: float
    depth: float
    r: float | None = None
    r_alone: float | None = None
    on_figures: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Data:
    """The scenes of a seed, composed of disjoint figures."""

    scenes: Images
    train: Images
    meta: Images
    probe: Images
    test: Images

    @classmethod
    def draw(cls, sizes: Sizes, figures: Figures, seed: int) -> "Data":
        n = len(figures.labels)
        counts = (sizes.scenes, sizes.feedback, sizes.feedback, sizes.probe, sizes.test)
        parts = figures.parts((n // 2, n // 16, n // 16, n // 8, n // 4), seed)
        rng = np.random.default_rng([seed, 1])
        found = [compose(part, count, sizes.side, sizes.patch, rng) for part, count in zip(parts, counts, strict=True)]
        return cls(Images({"image": found[0].arrays["image"]}), *found[1:])


def make_experiment(sizes: Sizes, data: Data, seed: int) -> VisionExperiment:
    vit = ViTConfig(sizes.side, sizes.patch, sizes.hidden, sizes.layers, sizes.heads)
    views = Views(sizes.side // 2, sizes.locals, (sizes.smallest, 1.0), jitter=sizes.jitter)
    designer = MaskDesigner(sizes.patch, sizes.ratio)
    learner = Dino(vit, views, momentum=sizes.momentum, teacher_temperature=sizes.teacher_temperature, seed=seed)
    student = learner.init(seed)
    task = VisionTask(learner, designer, make_subset(student, sizes.subset), CLASSES, {"segmentation": 1.0, "depth": 1.0})
    steering = Steering(every=sizes.every, learning_rate=sizes.designer_rate, seed=seed)
    feedback, rate = {"train": data.train, "meta": data.meta}, learning_rates(training(sizes), sizes.steps)
    return VisionExperiment(task, student, designer.init(seed), steering, data.scenes, feedback, sizes.feedback_rows, rate)


def training(sizes: Sizes) -> Training:
    return Training(steps=sizes.steps, batch_rows=sizes.batch, every=50, learning_rate=sizes.rate, warmup=0.1)


def train(sizes: Sizes, experiment: VisionExperiment, arm: str, seed: int, folder: Path) -> Fitted:
    """Trains an arm, or continues it."""
    folder.mkdir(exist_ok=True)
    identity = {"seed": seed, "arm": arm, "sizes": asdict(sizes)}
    problem, metrics = experiment.problem(ARMS[arm]), MetricsLog(folder / "metrics.jsonl")
    return fit(problem, training(sizes), seed, folder / "state", identity, sharding.make_mesh(), metrics)


def measure(task: VisionTask, student: Any, data: Data) -> Row:
    """Probes of a frozen student: linear heads with batch normalization, fitted on one set of scenes and measured on another."""
    head = LinearHead(steps=300, rate=0.03)

    @jax.jit
    def outputs(student: Any, probe: Mapping[str, jax.Array], test: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        vit = task.learner.vit.build(student["vit"])
        (state, patches), (test_state, test_patches) = vit(probe["image"]), vit(test["image"])

        def of_class(logits: jax.Array) -> jax.Array:
            return -jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), probe["label"][:, None], axis=-1).mean()

        dense = head.fit(patches, CLASSES + 1, lambda outputs: sum(dense_losses(outputs, probe).values(), jnp.float32(0)))
        return head.apply(head.fit(state, FIGURE_CLASSES, of_class), test_state), head.apply(dense, test_patches)

    logits, dense = map(np.asarray, outputs(student, data.probe.arrays, data.test.arrays))
    test, found = data.test.arrays, dense[..., :-1].argmax(axis=-1)
    right = found == test["classes"]
    both = np.array([np.sum(right & (found == number)) for number in range(CLASSES)])
    either = np.array([np.sum((found == number) | (test["classes"] == number)) for number in range(CLASSES)])
    error = np.abs(dense[..., -1] - test["depth"]).mean()
    return Row(float(np.mean(logits.argmax(axis=-1) == test["label"])), float(right.mean()), float(np.mean(both / either)), float(error))


def masks_of(task: VisionTask, designer: Any, images: np.ndarray, draws: int = 16) -> np.ndarray:
    """Mean mask of each patch over some draws: (B, P)."""

    @jax.jit
    def mean(designer: Any, images: jax.Array) -> jax.Array:
        logits = task.designer.logits(designer, images)
        noise = jax.random.logistic(jax.random.key(0), (draws, *logits.shape))
        return jax.vmap(lambda noise: task.designer.masks(logits, noise))(noise).mean(axis=0)

    return np.asarray(mean(designer, images))


def run_arm(sizes: Sizes, data: Data, arm: str, seed: int, folder: Path) -> Row:
    experiment = make_experiment(sizes, data, seed)
    if arm == START:
        return measure(experiment.task, experiment.student, data)
    fitted = train(sizes, experiment, arm, seed, folder)
    row, test = measure(experiment.task, fitted.params, data), data.test.arrays
    designer = fitted.auxiliary["steering"].get("designer")
    if designer is not None:
        masks = masks_of(experiment.task, designer, test["image"])
        r, alone = (correlation(probe_pairs(fitted.looks, name)) for name in ("predicted", "predicted_alone"))
        row = replace(row, r=r, r_alone=alone, on_figures=float(masks[test["classes"] > 0].mean()))
    return replace(row, seconds=fitted.looks[-1].seconds)


def draw_masks(path: Path, task: VisionTask, designer: Any, images: np.ndarray) -> None:
    """Scenes, the mean masks of the designer on them (white: masked), and a mask as the student gets it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure, grid = Figure(figsize=(1.1 * len(images), 3.5), layout="constrained"), task.learner.vit.grid
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, len(images))
    mean, one = (masks_of(task, designer, images, draws).reshape(-1, grid, grid) for draws in (64, 1))
    for axis in axes.ravel():
        axis.axis("off")
    for column, image in enumerate(pixels(images)):
        axes[0, column].imshow(image)
        axes[1, column].imshow(mean[column], cmap="gray", vmin=0, vmax=1)
        hidden = np.kron(one[column], np.ones((task.learner.vit.patch,) * 2))[..., None]
        axes[2, column].imshow((1 - hidden) * image + hidden * 0.5)
    save(figure, path)


def report(seeds: Sequence[Mapping[str, Row]]) -> None:
    """Prints each arm's figures and paired differences. Intervals are 95 %, Student's t over seeds."""

    def spread(values: Sequence[float]) -> str:
        table = np.asarray(values, float)
        half = stats.t.ppf(0.975, len(table) - 1) * table.std(ddof=1) / len(table) ** 0.5 if len(table) > 1 else float("nan")
        return f"{table.mean():8.4f} ± {half:.4f}"

    def line(name: str, of: Callable[[Mapping[str, Row], str], float]) -> str:
        return f"{name:30}" + "".join(f"{spread([of(seed, field) for seed in seeds]):>20}" for field in BETTER)

    print(f"{len(seeds)} seeds, mean ± half of the 95 % interval\n{'':30}" + "".join(f"{field:>20}" for field in BETTER))
    for arm in seeds[0]:
        print(line(arm, lambda seed, field, arm=arm: getattr(seed[arm], field)))
    print("better than the other by (paired; seeds with 0 or more)")
    pairs = ("plain", START), ("random masks", "plain"), ("value", "plain"), ("value", "random masks"), ("value", "random direction")
    for arm, other in pairs:
        if arm in seeds[0] and other in seeds[0]:

            def gain(seed: Mapping[str, Row], field: str, arm: str = arm, other: str = other) -> float:
                return BETTER[field] * (getattr(seed[arm], field) - getattr(seed[other], field))

            wins = "".join(f"{sum(gain(seed, field) >= 0 for seed in seeds):>18}/{len(seeds)}" for field in BETTER)
            print(f"{line(f'{arm} - {other}', gain)}\n{'':30}{wins}")
    for arm, rows in {arm: [seed[arm] for seed in seeds] for arm in seeds[0]}.items():
        notes = {name: [value for row in rows if (value := getattr(row, name)) is not None] for name in ("r", "r_alone", "on_figures")}
        words = [f"{name} {np.mean(values):.3f}" for name, values in notes.items() if values]
        print(f"{arm:30} {np.mean([row.seconds for row in rows]):6.1f} s of steps  {', '.join(words)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="folder of what is done; continued when it is there")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds (default: %(default)s)")
    parser.add_argument("--first-seed", type=int, default=0, help="seeds that settings are chosen on are others than those of the result")
    parser.add_argument("--arms", default="plain,random masks,value", help="comma separated, of " + ", ".join(ARMS))
    parser.add_argument("--figures", default="digits", help="digits, or a data set's name for datasets (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another size of the experiment")
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error(f"--seeds {args.seeds}: at least 1 is required")
    if unknown := [arm for arm in args.arms.split(",") if arm not in ARMS]:
        parser.error(f"--arms {unknown[0]}: one of {', '.join(ARMS)} is required")
    try:
        sizes = replace(Sizes(), **{name: json.loads(value) for name, value in (each.split("=") for each in args.set)})
    except (TypeError, ValueError) as error:
        parser.error(f"--set {' '.join(args.set)}: NAME=VALUE is required, of {', '.join(vars(Sizes()))} ({error})")
    try:
        figures = read_figures(args.figures)
    except ModuleNotFoundError as error:
        parser.error(f"--figures {args.figures}: {error.name} is not installed")
    use_compile_cache("auto", Console())
    settings = {"sizes": asdict(sizes), "figures": args.figures}
    args.out.mkdir(parents=True, exist_ok=True)
    if (args.out / "settings.json").exists() and read_json(args.out / "settings.json") != settings:
        parser.error(f"--out {args.out}: made with other settings; name another folder")
    write_json(args.out / "settings.json", settings)
    seeds = list[dict[str, Row]]()
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        data, rows = Data.draw(sizes, figures, seed), dict[str, Row]()
        (args.out / f"seed-{seed}").mkdir(exist_ok=True)
        for arm in [START, *args.arms.split(",")]:
            folder = args.out / f"seed-{seed}" / arm.replace(" ", "-")
            if (done := folder.with_suffix(".json")).exists():
                rows[arm] = from_json(Row, read_json(done), str(done))
                continue
            rows[arm] = run_arm(sizes, data, arm, seed, folder)
            write_json(done, asdict(rows[arm]))
            print(f"  seed {seed}, {arm}: {rows[arm]}", flush=True)
        seeds.append(rows)
        if seed == args.first_seed and "value" in rows and not (args.out / "masks.png").exists():
            experiment = make_experiment(sizes, data, seed)
            trained = train(sizes, experiment, "value", seed, args.out / f"seed-{seed}" / "value")
            draw_masks(args.out / "masks.png", experiment.task, trained.auxiliary["steering"]["designer"], data.test.arrays["image"][:8])
    write_json(args.out / "results.json", settings | {"seeds": [{arm: asdict(row) for arm, row in seed.items()} for seed in seeds]})
    report(seeds)


if __name__ == "__main__":
    main()
