"""The report page of a grid: how many examples an adapter needs, and how that falls with the quality of the base."""

from dataclasses import dataclass, replace
from pathlib import Path

from perturbjax.caulking.caveats import caveats
from perturbjax.caulking.config import Config
from perturbjax.caulking.headline import curve_name, headline
from perturbjax.caulking.results import Results, read_results
from perturbjax.report.page import missing_extra, read_run_record, reproduce_command, write_page
from perturbjax.report.schema import Devices
from perturbjax.report.words import count, plural


@dataclass(frozen=True)
class RunRecord:
    """What the page reads of config.json."""

    config: Config
    devices: Devices
    versions: dict[str, str]


def write_report(run_dir: str | Path) -> Path:
    """Write ``plots/*.png`` and ``report.html`` of a finished run; a second call gives the same bytes.

    Args:
        run_dir: holds results.json and config.json.

    Raises:
        InputError: one of them is missing or damaged, or an extra is not installed.
    """
    run = Path(run_dir)
    results, (record, content) = read_results(run / "results.json"), read_run_record(RunRecord, run)
    # config.json has those that the run began with, and may have been asked for others since.
    record = replace(record, config=replace(record.config, data=replace(record.config.data, accuracies=results.accuracies)))
    values = {
        "results": results,
        "headline": headline(results),
        "caveats": caveats(results, record.config),
        "setup": _setup(results, record),
        "settings": record.config,
        "command": reproduce_command("caulking", record.config),
        "config": content,
    }
    page = run / "report.html"
    write_page(page, "perturbjax.caulking", values, {"curve_name": curve_name, "plural": plural, "figure": _figure}, _plots(run, results))
    return page


def _figure(number: float) -> str:
    """Three digits; what a fit cannot tell from zero is not told from it."""
    return f"{number:.3g}" if number >= 1e-6 else "below 1e-6"


def _plots(run: Path, results: Results) -> list[Path]:
    try:
        from perturbjax.caulking.plots import plot_curves, plot_needed
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error

    folder = run / "plots"
    folder.mkdir(exist_ok=True)
    plots = [folder / "curves.png"]
    plot_curves(plots[0], results)
    if len(results.bases) > 1 and results.caulked:
        plots.append(folder / "needed.png")
        plot_needed(plots[1], results)
    return plots


def _setup(results: Results, record: RunRecord) -> list[tuple[str, str]]:
    config, devices = record.config, record.devices
    grid, fitting = config.grid, config.fitting
    moved = ", ".join(f"{sigma:g}" for sigma in config.bases.sigmas if sigma)
    quality = ["the base itself"] * (0 in config.bases.sigmas) + [f"moved by gaussian noise of sigma {moved}"] * bool(moved)
    sizes = {"lora": f"LoRA of rank {grid.rank}, alpha {2 * grid.rank}", "adapter": f"bottlenecks of {grid.bottleneck}"}
    rates = ", ".join(f"{name} {grid.rate(name):g}" for name in grid.methods)
    return [
        ("Base", f"{results.model.name}: {results.model.source}"),
        ("Quality", ", ".join(quality)),
        ("Task", f"{results.task.name}: {results.task.source}"),
        ("Prompt", results.template),
        ("Examples", f"drawn from {count(results.pool)}, measured on {plural(results.n, 'other')}; {plural(results.seeds, 'seed')}"),
        ("Methods", ", ".join(f"{name} ({count(results.trained[name])} parameters)" for name in grid.methods)),
        ("Sizes", ", ".join(sizes[name] for name in grid.methods if name in sizes) or "none to choose"),
        ("Optimizer", f"AdamW, {plural(fitting.steps, 'step')} of {plural(fitting.batch, 'example')}; learning rates {rates}"),
        ("Weights of the base", config.bases.dtype),
        ("Ran on", f"{devices.count} device(s): {', '.join(devices.kinds)} ({devices.backend})"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())),
    ]
