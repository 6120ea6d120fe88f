"""Caulking on a convolutional network, the paper's kind: pretrained on five classes of Fashion-MNIST, caulked for the other five.

    apt-get install dataset-fashion-mnist
    .venv/bin/python scripts/recipes/caulking/cnn.py --seeds 5 --plot /tmp/cnn.png

Three stages of a convolution are pretrained on m images of classes 0 to 4 (tops, trousers, pullovers, dresses, coats), each seed on rows
of its own, the number of steps chosen on other images. n images of classes 5 to 9 then train a new head alone, with a bottleneck after each
stage, or with LoRA on each stage; or a network from scratch. The control is pretrained on labels in another order. Errors are shares of
wrong answers on images that nothing was trained on.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.ticker import NullLocator

from perturbjax.caulking import Fitting, Measured, Method, run_grid, sample_complexity
from perturbjax.caulking.complexity import source_slope, surfaces
from perturbjax.caulking.pretraining import pretrain
from perturbjax.caulking.surface_table import required_lines, surface_lines
from perturbjax.errors import InputError
from perturbjax.models.adapter_layers import bottleneck
from perturbjax.models.adapters import Bottleneck, LoRA, head
from perturbjax.report.figure import BLUE, GREY, PURPLE, VERMILLION, label_right, new_figure, percent_axis, save
from perturbjax.runs.compile_cache import use_compile_cache
from perturbjax.runs.console import SILENT, Console, Progress
from perturbjax.tasks.idx import read_idx

PACKAGE = Path("/usr/share/datasets/fashion-mnist")
"""Where the Debian package has the data set."""
SOURCE, TARGET = range(5), range(5, 10)
"""Classes of the pretraining and of the target."""
STAGES = ("stage1", "stage2", "stage3")
WINDOW, STRIDE = 3, 2
"""Pixels of a side of a convolution, and from one to the next."""


@dataclass(frozen=True)
class Sizes:
    """Sizes and settings.

    Attributes:
        channels: outputs of each stage.
        sources: m; samples: n.
        test: images that measure errors, of the target; as many choose the steps of pretraining, as many measure errors of the source.
        lengths: steps of pretraining, of which the best are taken for each m and seed.
        steps, batch: of a cell of the target; ``pretraining_batch``.
        rate: highest learning rate, from scratch too; ``pretraining_rate``.
        rank, bottleneck: of the caulks.
    """

    channels: tuple[int, int, int] = (16, 32, 64)
    sources: tuple[int, ...] = (100, 1000, 16000)
    samples: tuple[int, ...] = (10, 40, 160, 640)
    test: int = 1000
    lengths: tuple[int, ...] = (100, 1500)
    steps: int = 200
    batch: int = 32
    pretraining_batch: int = 64
    pretraining_rate: float = 1e-2
    rate: float = 5e-3
    rank: int = 4
    bottleneck: int = 8


Rows = tuple[np.ndarray, np.ndarray]
"""Images (N, 28, 28, 1) from 0 to 1, labels (N,) from 0 on."""


@dataclass(frozen=True)
class Sets:
    """Rows of the source and of the target: to train on, to choose the steps of pretraining by, to measure errors with."""

    source: Rows
    validation: Rows
    source_test: Rows
    target: Rows
    test: Rows

    @classmethod
    def read(cls, folder: Path, sizes: Sizes) -> "Sets":
        """Of the files of the data set, in their order; training rows of its training part, the others of its test part."""

        def of(part: str, classes: range) -> Rows:
            images = read_idx(folder / f"{part}-images-idx3-ubyte.gz")
            labels = read_idx(folder / f"{part}-labels-idx1-ubyte.gz")
            wanted = (labels >= classes.start) & (labels < classes.stop)
            return images[wanted, ..., None].astype(np.float32) / 255, labels[wanted].astype(np.int32) - classes.start

        def cut(rows: Rows, start: int, count: int) -> Rows:
            return rows[0][start : start + count], rows[1][start : start + count]

        held = of("t10k", SOURCE)
        return cls(
            cut(of("train", SOURCE), 0, max(sizes.sources)),
            cut(held, 0, sizes.test),
            cut(held, sizes.test, sizes.test),
            cut(of("train", TARGET), 0, max(sizes.samples)),
            cut(of("t10k", TARGET), 0, sizes.test),
        )


def network(channels: Sequence[int]) -> Any:
    """key -> random parameters; the head begins at zero. Kernels are matrices (window * window * in, out)."""

    def init(key: jax.Array) -> Any:
        params, inputs = {}, 1
        for name, outputs, own in zip(STAGES, channels, jax.random.split(key, len(STAGES)), strict=True):
            rows = WINDOW**2 * inputs
            kernel = jax.random.normal(own, (rows, outputs)) * (2 / rows) ** 0.5
            params[name], inputs = {"kernel": kernel, "bias": jnp.zeros(outputs)}, outputs
        return params | {"head": {"kernel": jnp.zeros((inputs, len(TARGET))), "bias": jnp.zeros(len(TARGET))}}

    return init


def forward(params: Any, images: jax.Array) -> jax.Array:
    """Logits (B, 5): stages of convolution, bottleneck if there is one, and ReLU; the mean over places; the head."""
    x = images
    for name in STAGES:
        x = jax.nn.relu(bottleneck(params[name], _convolved(params[name], x)))
    return x.mean(axis=(1, 2)) @ params["head"]["kernel"] + params["head"]["bias"][None]


def _convolved(layer: Any, x: jax.Array) -> jax.Array:
    """A convolution with zeros around, as a product of its windows: many kernels at once, one for each cell, are then a batched product,
    where ``lax.conv_general_dilated`` becomes one of many groups, which is slow on CPU."""
    side = -(-x.shape[1] // STRIDE)
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    places = [(row, column) for row in range(WINDOW) for column in range(WINDOW)]
    windows = [x[:, row : row + STRIDE * side : STRIDE, column : column + STRIDE * side : STRIDE] for row, column in places]
    return jnp.concatenate(windows, axis=-1) @ layer["kernel"] + layer["bias"][None, None, None]


def loss(params: Any, batch: Any) -> jax.Array:
    log_probs = jax.nn.log_softmax(forward(params, batch[0]), axis=-1)
    return -jnp.take_along_axis(log_probs, batch[1][:, None], axis=-1).mean()


def wrong(params: Any, test: Any) -> jax.Array:
    """Share of wrong answers."""
    return (forward(params, test[0]).argmax(axis=-1) != test[1]).mean(dtype=jnp.float32)


def pretrained(
    sizes: Sizes, sets: Sets, seeds: Sequence[int], shuffled: bool, progress: Progress
) -> tuple[dict[float, Any], dict[float, list[float]]]:
    """m -> networks pretrained on m rows of each seed, leading S, with a new head at zero; m -> source errors, one a seed."""
    images, labels = sets.source
    rows = images, np.random.default_rng(0).permutation(labels) if shuffled else labels
    bases = pretrain(
        loss, wrong, network(sizes.channels), rows, sets.validation, sizes.sources, seeds, sizes.lengths, sizes.pretraining_batch,
        sizes.pretraining_rate, progress=progress,
    )  # fmt: skip
    measured = jax.jit(jax.vmap(wrong, (0, None)))
    errors = {m: list(map(float, measured(base, sets.source_test))) for m, base in bases.items()}
    return {m: base | {"head": jax.tree.map(np.zeros_like, base["head"])} for m, base in bases.items()}, errors


def methods(sizes: Sizes) -> dict[str, Method]:
    stages = (r"^stage\d/kernel$",)
    return {
        "head": Method(head(), learning_rate=sizes.rate),
        "adapter": Method(Bottleneck(sizes.bottleneck, stages), head(), sizes.rate),
        "lora": Method(LoRA(sizes.rank, float(sizes.rank), stages), head(), sizes.rate),
        "scratch": Method(None, learning_rate=sizes.rate),
    }


def experiment(
    sizes: Sizes, sets: Sets, seeds: Sequence[int], names: Sequence[str], shuffled: bool = False, progress: Progress = SILENT
) -> tuple[tuple[Measured, ...], dict[float, list[float]]]:
    """Cells of the target, and errors of the bases on the source; ``shuffled``: its labels have nothing to do with the images."""
    bases, errors = pretrained(sizes, sets, seeds, shuffled, progress)
    chosen = {name: method for name, method in methods(sizes).items() if name in names}
    data, test = (jax.tree.map(lambda rows: np.repeat(rows[None], len(seeds), axis=0), part) for part in (sets.target, sets.test))
    cells = run_grid(
        loss, wrong, bases, chosen, data, test, sizes.samples, seeds, Fitting(sizes.steps, sizes.batch),
        init=network(sizes.channels), per_seed=True, progress=progress,
    )  # fmt: skip
    return cells, errors


def report(cells: Sequence[Measured], source: Mapping[float, Sequence[float]], level: float) -> None:
    table = surfaces(cells)
    for name, surface in table.items():
        print("\n".join(surface_lines(f"{name}: wrong answers on the target", surface, source)))
    print(f"images for {level:.0%} wrong answers, 95 % intervals over seeds")
    try:
        found = sample_complexity(cells, level)
    except InputError as error:  # not one cell reaches it
        return print(error)
    for name, each in found.items():
        print("\n".join(required_lines(name, each)))
        if None not in each and sum(required.censored == "no" for required in each.values()) > 1:
            value, (low, high), used = source_slope(table[name], source, level)
            print(f"{name:8} slope of log n_req against log source error {value:.2f} [{low:.2f}, {high:.2f}], {used} of {len(source)} m")


def plot(path: Path, cells: Sequence[Measured], level: float) -> None:
    """Wrong answers against n: a color a method, the smallest m dashed, the largest solid."""
    figure, (axis,) = new_figure(4.4)
    axis.set_xscale("log", base=2)
    labels, table = [], surfaces(cells)
    for (name, surface), color in zip(table.items(), (GREY, BLUE, VERMILLION, PURPLE), strict=False):
        for row in {0, len(surface.qualities) - 1}:
            m, (low, high) = surface.qualities[row], surface.interval()[row].T
            axis.fill_between(surface.samples, low, high, color=color, alpha=0.12, linewidth=0)
            solid = row == len(surface.qualities) - 1
            axis.plot(surface.samples, surface.mean[row], "o-" if solid else "o--", color=color, markersize=4.5, linewidth=1.8)
            labels.append((surface.mean[row][-1], name if m is None else f"{name}, m = {m:,.0f}", color))
    axis.axhline(level, color="#bbbbbb", linewidth=1.0, linestyle=":", zorder=0)
    axis.set_xticks(surface.samples, [str(n) for n in surface.samples])
    axis.xaxis.set_minor_locator(NullLocator())
    percent_axis(axis, "y")
    axis.set_xlabel("labeled images of the target, n")
    axis.set_ylabel("wrong answers")
    label_right(axis, labels)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--images", type=Path, default=PACKAGE, help="folder of the data set's four files")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default: %(default)s)")
    parser.add_argument("--error", type=float, default=0.2, help="share of wrong answers whose images are asked for (default: %(default)s)")
    parser.add_argument("--plot", type=Path, help="PNG of the curves")
    args = parser.parse_args()
    if args.seeds < 1 or args.first < 0:
        parser.error(f"--seeds {args.seeds} --first {args.first}: at least one seed is required, and the first is at least 0")
    if not 0 < args.error < 1:
        parser.error(f"--error {args.error}: a fraction between 0 and 1 is required")
    if not (args.images / "train-images-idx3-ubyte.gz").is_file():
        parser.error(f"--images {args.images}: no Fashion-MNIST; apt-get install dataset-fashion-mnist, or name its folder")
    console, started = Console(), time.perf_counter()
    use_compile_cache("auto", console)
    sizes, seeds = Sizes(), range(args.first, args.first + args.seeds)
    sets = Sets.read(args.images, sizes)
    cells, source = experiment(sizes, sets, seeds, tuple(methods(sizes)), progress=console)
    report(cells, source, args.error)
    if args.plot:
        plot(args.plot, cells, args.error)
    print("control: labels of the source in another order")
    control = replace(sizes, sources=sizes.sources[-1:])
    report(*experiment(control, sets, seeds, ("head", "adapter"), shuffled=True, progress=console), args.error)
    print(f"{time.perf_counter() - started:.0f} s, {time.process_time():.0f} s of CPU")


if __name__ == "__main__":
    main()
