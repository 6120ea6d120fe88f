"""report.html: one file that opens offline and says what was done, whether it helped and how sure one can be."""

import base64
import json
import shlex
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from perturbjax.errors import InputError
from perturbjax.report import words
from perturbjax.report.headline import headline, judge
from perturbjax.report.words import Results, chosen_entry, rows
from perturbjax.runs.files import read_json, write_atomically
from perturbjax.runs.identity import SETTINGS

PLOTS = ("score_distribution", "accuracy_by_k", "share_at_or_above_base")
_SETTINGS = ("model", "task", *SETTINGS, "template", "max_new_tokens", "dtype")
"""The settings that the result depends on."""


def write_report(run_dir: str | Path) -> Path:
    """Write ``plots/*.png`` and ``report.html`` of a finished run; a second call gives the same bytes.

    Args:
        run_dir: holds results.json, candidates.parquet, config.json and, for the measured speed over time, metrics.jsonl.

    Returns:
        The path of report.html.

    Raises:
        InputError: a file is missing or damaged, or the ``report`` extra is not installed.
    """
    run_dir = Path(run_dir)
    try:
        import jinja2

        from perturbjax.report.plots import plot_accuracy, plot_racing, plot_scores, plot_share
    except ModuleNotFoundError as error:
        raise InputError(f"report: {error.name} is not installed; pip install 'perturbjax[report]'") from error

    results, config = read_json(run_dir / "results.json"), read_json(run_dir / "config.json")
    sigmas, scores, asked = _read_candidates(run_dir / "candidates.parquet")
    plots = run_dir / "plots"
    plots.mkdir(exist_ok=True)
    files = [plots / f"{name}.png" for name in PLOTS]
    try:
        plot_scores(files[0], results, sigmas, scores, asked)
        plot_accuracy(files[1], results)
        plot_share(files[2], results)
        if words.raced(results):
            files.append(plots / "racing.png")
            plot_racing(files[3], results)
        page = (
            _environment()
            .get_template("report.html")
            .render(
                results=results,
                config=config,
                headline=headline(results),
                rows=list(rows(results)),
                best=chosen_entry(results),
                lenient=words.has_lenient(results),
                raced=words.raced(results),
                asked=words.search_words(results),
                most_votes=words.most_votes(results),
                setup=_setup(results, config),
                command=reproduce_command(config),
                caveats=_caveats(results),
                speed=_speed_over_time(run_dir / "metrics.jsonl"),
                images={file.stem: "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode() for file in files},
            )
        )
    except (AttributeError, KeyError, TypeError, jinja2.UndefinedError) as error:
        raise InputError(f"{run_dir / 'results.json'}: not a complete result ({error}); remove it and resume the search") from error
    report = run_dir / "report.html"
    write_atomically(report, lambda file: file.write(page.encode()))
    return report


def _environment() -> Any:
    """The jinja2 environment of the templates: autoescaped, every missing value an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("perturbjax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({name: getattr(words, name) for name in _FILTERS})
    environment.filters["together"] = lambda text: text.replace(" %", "\u00a0%")
    return environment


_FILTERS = ("percent", "percent_range", "points", "points_range", "count", "rate", "probability", "sigma_words")


def reproduce_command(config: Mapping[str, Any]) -> str:
    """The ``perturbjax search`` call that gives the same candidates, ensemble and answers, from the settings in config.json."""
    parts = ["perturbjax", "search"]
    for name in _SETTINGS:
        value, flag = config["config"][name], "--" + name.replace("_", "-")
        if value is True:
            parts.append(flag)
        elif isinstance(value, list):
            parts += [flag, ",".join(map(repr, value))]
        elif value is not None and value is not False:
            parts += [flag, str(value)]
    return shlex.join(parts)


def _setup(results: Results, config: Mapping[str, Any]) -> list[tuple[str, str]]:
    settings, splits, selection = config["config"], results["splits"], results["selection"]
    rank, devices = settings["rank"], config["devices"]
    noise = f"{settings['noise']}, " + ("full rank" if rank is None else f"rank {rank}") + f", scale {settings['scale']}"
    steps = [
        ("Model", f"{results['model']['name']}: {results['model']['source']}"),
        ("Task", f"{results['task']['name']}: {results['task']['source']}"),
        (
            "Splits",
            f"{words.count(splits['search'])} search, {words.count(splits['select'])} select, {words.count(splits['test'])} test, disjoint",
        ),
        (
            "Population",
            f"N = {words.count(results['population']['n'])} candidates" + (", antithetic pairs" if settings["antithetic"] else ""),
        ),
        ("Racing", words.racing_words(results) if words.raced(results) else settings["racing"]),
        ("Sigmas", ", ".join(f"{s:g}" for s in settings["sigmas"])),
        ("Noise", noise),
        ("Prompt of the search", str(selection["search_prompt"])),
        ("Votes", f"at most {settings['top_k']}; K = {selection['K']} from {words.sigma_words(selection['sigma'])} chosen on select"),
        ("Seed", str(settings["seed"])),
        ("Weights", str(settings["dtype"])),
        ("Ran on", f"{devices['count']} device(s): {', '.join(devices['kinds'])} ({devices['backend']})"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in config["versions"].items())),
    ]
    return steps


def _caveats(results: Results) -> list[str]:
    """What could mislead a reader of this very run."""
    best, ties, splits = chosen_entry(results), results["ties"], results["splits"]
    notes = []
    if judge(best) == "no clear effect":
        half = (best["difference_interval"][1] - best["difference_interval"][0]) / 2
        notes.append(
            f"With {words.count(splits['test'])} test questions the uncertainty is about ±{100 * half:.1f} points: "
            "a smaller effect cannot be seen."
        )
    if ties["tied_candidates"] > ties["tied_inside_k"]:
        notes.append(
            f"{ties['tied_candidates']} candidates share the search score of the last voter ({words.percent(ties['score_at_k'])}) and only "
            f"{ties['tied_inside_k']} of them vote. Which ones is decided by their index, that is by nothing."
        )
    drop = best["members_search_mean"] - best["members_test_mean"]
    if drop > 0:
        notes.append(
            f"The voters look better on the questions that chose them: on average {words.percent(best['members_search_mean'])} on search, "
            f"{words.percent(best['members_test_mean'])} on test. Part of any search score is luck."
        )
    if words.raced(results) and len(results["selection"]["candidates"]["sigma"]) <= len(results["population"]["per_sigma"]):
        notes.append(
            f"The race kept the best of all sigmas. A sigma of which fewer than {words.most_votes(results)} candidates finished could "
            "not be chosen alone."
        )
    if results["population"]["nonfinite"]:
        notes.append(
            f"{results['population']['nonfinite']} candidates gave NaN or infinite outputs and scored 0: the largest sigma is too large."
        )
    notes.append("The intervals are for one run with one seed. Another seed draws other candidates; its spread is not in them.")
    notes.append(
        "The curve shows several K on the same test questions. Only the ringed one was chosen beforehand; the best-looking is no evidence."
    )
    return notes


def _speed_over_time(path: Path) -> dict[str, Any] | None:
    """Median speed of the chunks in metrics.jsonl, None without any."""
    if not path.is_file():
        return None
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        speeds = [float(line["candidates_per_s"]) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); remove it, or resume the search") from error
    return {"chunks": len(speeds), "median": statistics.median(speeds), "slowest": min(speeds), "fastest": max(speeds)} if speeds else None


def _read_candidates(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["sigma", "score", "examples_scored"])
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read ({str(error).splitlines()[0]}); resume the search to write it again") from error
    return table["sigma"].to_numpy(), table["score"].to_numpy(), table["examples_scored"].to_numpy()
