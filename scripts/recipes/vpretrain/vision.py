"""V-Pretraining on scenes: segmentation and depth of a few of them steer where a student of self-distillation is masked.

    python scripts/recipes/vpretrain/vision.py --out /tmp/vision --seeds 5

Scenes are digits of scikit-learn on textures, or the figures of ``--figures``: fashion, Fashion-MNIST of the Debian package
dataset-fashion-mnist; its folder; or a data set's name for datasets. Unlabelled scenes, feedback, the probes' training scenes and their
test scenes share no figure. Arms: step 0, plain self-distillation, random masks, masks of a designer that follows the value, and one that
follows a random direction; the same student, scenes and steps, paired by seed. Measured on the frozen student: a linear probe of the class,
dense probes of segmentation and depth. The folder holds what is done and is continued; in it are results.json, report.html and plots/.
"""

import argparse
import json
import shlex
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import jax
import numpy as np
from scenes import CLASSES, Figures, compose, pixels, read_figures

from perturbjax import sharding
from perturbjax.errors import InputError
from perturbjax.models.vit import ViTConfig
from perturbjax.records import from_json
from perturbjax.runs.compile_cache import use_compile_cache
from perturbjax.runs.console import Console
from perturbjax.runs.files import MetricsLog, read_json, write_json
from perturbjax.train import Training
from perturbjax.train.loop import fit
from perturbjax.train.optimizer import learning_rates
from perturbjax.train.problem import Fitted, Look, Problem
from perturbjax.vpretrain.dino import Dino
from perturbjax.vpretrain.images import Images
from perturbjax.vpretrain.masks import MaskDesigner
from perturbjax.vpretrain.probes import Probed, probe
from perturbjax.vpretrain.results import correlation, probe_pairs
from perturbjax.vpretrain.steering import Steering
from perturbjax.vpretrain.value import make_subset
from perturbjax.vpretrain.views import Views
from perturbjax.vpretrain.vision import VisionExperiment, VisionTask
from perturbjax.vpretrain.vision_plots import mean_masks, plot_masks
from perturbjax.vpretrain.vision_report import write_vision_report
from perturbjax.vpretrain.vision_results import VISION_ARMS, VISION_START, VisionArm, VisionResults, vision_table, write_vision_results

FIGURE_CLASSES = 10


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
class Data:
    """The scenes of a seed, composed of disjoint figures; those of ``validation``, which looks measure, of the probe's."""

    scenes: Images
    train: Images
    meta: Images
    probe: Images
    test: Images
    validation: Images

    @classmethod
    def draw(cls, sizes: Sizes, figures: Figures, seed: int) -> "Data":
        n = len(figures.labels)
        counts = (sizes.scenes, sizes.feedback, sizes.feedback, sizes.probe, sizes.test)
        parts = figures.parts((n // 2, n // 16, n // 16, n // 8, n // 4), seed)
        rng = np.random.default_rng([seed, 1])

        def composed(part: Figures, count: int) -> Images:
            return compose(part, count, sizes.side, sizes.patch, rng)

        scenes, train, meta, probe, test = map(composed, parts, counts)
        # Drawn last, so that the other scenes are those that they were without it.
        validation = composed(parts[3], sizes.feedback)
        return cls(Images({"image": scenes.arrays["image"]}), train, meta, probe, test, validation)


def make_experiment(sizes: Sizes, data: Data, seed: int) -> VisionExperiment:
    vit = ViTConfig(sizes.side, sizes.patch, sizes.hidden, sizes.layers, sizes.heads)
    views = Views(sizes.side // 2, sizes.locals, (sizes.smallest, 1.0), jitter=sizes.jitter)
    designer = MaskDesigner(sizes.patch, sizes.ratio)
    learner = Dino(vit, views, momentum=sizes.momentum, teacher_temperature=sizes.teacher_temperature, seed=seed)
    student = learner.init(seed)
    task = VisionTask(learner, designer, make_subset(student, sizes.subset), CLASSES, {"segmentation": 1.0, "depth": 1.0})
    steering = Steering(every=sizes.every, learning_rate=sizes.designer_rate, seed=seed)
    feedback = {"train": data.train, "meta": data.meta, "validation": data.validation}
    rate = learning_rates(training(sizes), sizes.steps)
    return VisionExperiment(task, student, designer.init(seed), steering, data.scenes, feedback, sizes.feedback_rows, rate)


def training(sizes: Sizes) -> Training:
    return Training(steps=sizes.steps, batch_rows=sizes.batch, every=25, learning_rate=sizes.rate, warmup=0.1)


def train(sizes: Sizes, experiment: VisionExperiment, arm: str, seed: int, folder: Path) -> Fitted:
    """Trains an arm, or continues it."""
    folder.mkdir(exist_ok=True)
    identity = {"seed": seed, "arm": arm, "sizes": asdict(sizes)}
    problem, metrics = experiment.problem(VISION_ARMS[arm]), MetricsLog(folder / "metrics.jsonl")
    return fit(problem, training(sizes), seed, folder / "state", identity, sharding.make_mesh(), metrics)


def measure(task: VisionTask, student: object, data: Data) -> Probed:
    return probe(task.learner.vit, student, data.probe, data.test, (FIGURE_CLASSES, CLASSES))


def validation(problem: Problem, rows: Images) -> dict[str, float]:
    """Losses of the validation scenes before any training, as a look has them."""
    assert problem.validate is not None
    loss, frozen = problem.validate
    sums = jax.jit(loss)(problem.params, frozen, rows.batch(np.arange(len(rows))))
    return {name: float(total / sums["weight"]) for name, total in sums.items() if name != "weight"}


def run_arm(sizes: Sizes, data: Data, arm: str, seed: int, folder: Path) -> VisionArm:
    experiment = make_experiment(sizes, data, seed)
    if arm == VISION_START:
        problem = experiment.problem("plain")
        look = Look(0, {}, 0.0, 0.0, validation(problem, data.validation), 0, 0.0, None)
        return VisionArm(**asdict(measure(experiment.task, experiment.student, data)), looks=(look,))
    fitted = train(sizes, experiment, arm, seed, folder)
    probed, test, looks = measure(experiment.task, fitted.params, data), data.test.arrays, fitted.looks
    row = VisionArm(**asdict(probed), seconds=looks[-1].seconds, looks=looks)
    designer = fitted.auxiliary["steering"].get("designer")
    if designer is None:
        return row
    masks = mean_masks(experiment.task, designer, test["image"])
    r, alone = (correlation(probe_pairs(looks, name)) for name in ("predicted", "predicted_alone"))
    return replace(row, r=r, r_alone=alone, on_figures=float(masks[test["classes"] > 0].mean()))


def draw_masks(sizes: Sizes, data: Data, seed: int, out: Path) -> None:
    """plots/masks.png: the designer of the first seed on some test scenes."""
    experiment = make_experiment(sizes, data, seed)
    trained = train(sizes, experiment, "value", seed, out / f"seed-{seed}" / "value")
    images = data.test.arrays["image"][:8]
    plot_masks(out / "plots" / "masks.png", experiment.task, trained.auxiliary["steering"]["designer"], images, pixels(images))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--out", type=Path, required=True, help="folder of what is done; continued when it is there")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds (default: %(default)s)")
    parser.add_argument("--first-seed", type=int, default=0, help="seeds that settings are chosen on are others than those of the result")
    parser.add_argument("--arms", default=",".join(VISION_ARMS), help="comma separated (default: %(default)s)")
    parser.add_argument("--figures", default="digits", help="digits, fashion, a folder, or a data set's name (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another size of the experiment")
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error(f"--seeds {args.seeds}: at least 1 is required")
    if unknown := [arm for arm in args.arms.split(",") if arm not in VISION_ARMS]:
        parser.error(f"--arms {unknown[0]}: one of {', '.join(VISION_ARMS)} is required")
    try:
        sizes = replace(Sizes(), **{name: json.loads(value) for name, value in (each.split("=") for each in args.set)})
    except (TypeError, ValueError) as error:
        parser.error(f"--set {' '.join(args.set)}: NAME=VALUE is required, of {', '.join(vars(Sizes()))} ({error})")
    try:
        figures = read_figures(args.figures)
    except ModuleNotFoundError as error:
        parser.error(f"--figures {args.figures}: {error.name} is not installed")
    except (InputError, OSError) as error:  # datasets: no such data set, or no network
        parser.error(f"--figures {args.figures}: {error}")
    use_compile_cache("auto", Console())
    settings = {"sizes": asdict(sizes), "figures": args.figures}
    (args.out / "plots").mkdir(parents=True, exist_ok=True)
    if (args.out / "settings.json").exists() and read_json(args.out / "settings.json") != settings:
        parser.error(f"--out {args.out}: made with other settings; name another folder")
    write_json(args.out / "settings.json", settings)
    seeds = list[dict[str, VisionArm]]()
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        data, rows = Data.draw(sizes, figures, seed), dict[str, VisionArm]()
        (args.out / f"seed-{seed}").mkdir(exist_ok=True)
        for arm in [VISION_START, *args.arms.split(",")]:
            folder = args.out / f"seed-{seed}" / arm.replace(" ", "-")
            if (done := folder.with_suffix(".json")).exists():
                rows[arm] = from_json(VisionArm, read_json(done), str(done))
                continue
            rows[arm] = run_arm(sizes, data, arm, seed, folder)
            write_json(done, asdict(rows[arm]))
            print(f"  seed {seed}, {arm}: {replace(rows[arm], looks=())}", flush=True)
        seeds.append(rows)
        if seed == args.first_seed and "value" in rows and not (args.out / "plots" / "masks.png").exists():
            draw_masks(sizes, data, seed, args.out)
    command = shlex.join(["python", "scripts/recipes/vpretrain/vision.py", *sys.argv[1:]])
    images = f"{len(data.scenes):,} scenes of {Path(args.figures).name} on textures, of {sizes.side} pixels a side"
    results = VisionResults(images, command, sizes.ratio, asdict(sizes), args.first_seed, tuple(seeds))
    write_vision_results(args.out / "results.json", results)
    print(vision_table(results))
    print(f"report  {write_vision_report(args.out)}")


if __name__ == "__main__":
    main()
