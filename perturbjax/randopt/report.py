"""The report page of a RandOpt run: what was done, whether it helped and how sure one can be."""

import statistics
from dataclasses import dataclass
from pathlib import Path

from perturbjax.errors import InputError
from perturbjax.inference.calibration import Calibration
from perturbjax.randopt.auto_sigmas import calibration_words
from perturbjax.randopt.config import Config
from perturbjax.randopt.headline import headline, reason
from perturbjax.randopt.results import Results, halving_of, read_results, screening_of
from perturbjax.randopt.results_table import halving_words, has_lenient, lines, racing_words, search_words, sigma_words
from perturbjax.randopt.screened import Screening, read_screening
from perturbjax.randopt.screening_words import difference_words, screening_words
from perturbjax.randopt.table import read_candidates
from perturbjax.records import read_json_lines
from perturbjax.report.page import missing_extra, read_run_record, reproduce_command, write_page
from perturbjax.report.schema import Devices
from perturbjax.report.words import count, percent
from perturbjax.runs.rundir import RunDirectory


@dataclass(frozen=True)
class RunRecord:
    """What the page reads of config.json."""

    config: Config
    devices: Devices
    versions: dict[str, str]
    calibration: Calibration | None = None


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
    results, (record, config) = read_results(run_dir / "results.json"), read_run_record(RunRecord, run_dir)
    screened = screening_of(results)
    values = {
        "results": results,
        "config": config,
        "headline": headline(results),
        "lines": list(lines(results)),
        "lenient": has_lenient(results),
        "asked": search_words(results),
        "setup": _setup(results, record),
        "command": reproduce_command("randopt", record.config),
        "caveats": _caveats(results),
        "speed": _speed_over_time(run_dir / "metrics.jsonl"),
        "screening": screened,
        "halving": halving_of(results),
    }
    screening = None if screened is None else read_screening(RunDirectory(run_dir), record.config.search)
    plots = _write_plots(run_dir, results, screening)
    report = run_dir / "report.html"
    filters = {"sigma_words": sigma_words, "difference_words": difference_words}
    write_page(report, "perturbjax.randopt", values, filters, plots)
    return report


def _write_plots(run_dir: Path, results: Results, screening: Screening | None) -> list[Path]:
    try:
        from perturbjax.randopt.plots import plot_accuracy, plot_density, plot_racing, plot_scores, plot_screening
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error

    folder = run_dir / "plots"
    candidates = read_candidates(run_dir / "candidates.parquet")
    folder.mkdir(exist_ok=True)
    plots = [folder / f"{name}.png" for name in ("score_distribution", "accuracy_by_k", "share_at_or_above_base")]
    plot_scores(plots[0], results, *candidates)
    plot_accuracy(plots[1], results)
    plot_density(plots[2], results)
    if results.raced:
        plots.append(folder / "racing.png")
        plot_racing(plots[-1], results)
    if screening is not None:
        plots.append(folder / "screening.png")
        plot_screening(plots[-1], results, screening, *candidates[1:])
    return plots


def _setup(results: Results, record: RunRecord) -> list[tuple[str, str]]:
    search, splits, selection, devices = record.config.search, results.splits, results.selection, record.devices
    screened = screening_of(results)
    rank = "full rank" if search.rank is None else f"rank {search.rank}"
    rules = f", rules {','.join(map(str, search.rules))}" if search.rules else ""
    return [
        ("Model", f"{results.model.name}: {results.model.source}"),
        ("Task", f"{results.task.name}: {results.task.source}"),
        ("Splits", f"{count(splits.search)} search, {count(splits.select)} select, {count(splits.test)} test, disjoint"),
        ("Population", f"N = {count(results.population.n)} candidates" + (", antithetic pairs" if search.antithetic else "")),
        *([("Searcher", f"halving over the sigmas: {halving_words(results)}")] if halving_of(results) else []),
        *([] if screened is None else [("Searcher", f"screen: {screening_words(screened)}")]),
        ("Racing", racing_words(results) if results.raced or results.racing.screen is not None else search.racing),
        ("Sigmas", ", ".join(f"{sigma:g}" for sigma in search.to_population().sigmas)),
        *([] if record.calibration is None else [("How they were chosen", calibration_words(record.calibration))]),
        ("Noise", f"{search.noise}, {rank}, scale {search.scale}{rules}"),
        ("Prompt of the search", selection.search_prompt),
        ("Votes", f"at most {search.top_k}; K = {selection.K} from {sigma_words(selection.sigma)} chosen on select"),
        ("Seed", str(search.seed)),
        ("Weights", record.config.base.dtype),
        ("Ran on", f"{devices.count} device(s): {', '.join(devices.kinds)} ({devices.backend})"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())),
    ]


def _caveats(results: Results) -> list[str]:
    """What could mislead a reader of this very run."""
    best, ties = results.chosen, results.ties
    notes = []
    if best.verdict == "no clear effect":
        half = (best.difference_interval[1] - best.difference_interval[0]) / 2
        notes.append(
            f"With {count(results.splits.test)} test questions the uncertainty is about ±{100 * half:.1f} points: "
            "a smaller effect cannot be seen."
        )
    if ties.tied_candidates > ties.tied_inside_k:
        notes.append(
            f"{ties.tied_candidates} candidates share the search score of the last voter ({percent(ties.score_at_k)}) and only "
            f"{ties.tied_inside_k} of them vote. Which ones is decided by their index, that is by nothing."
        )
    if best.members_search_mean > best.members_test_mean:
        notes.append(
            f"The voters look better on the questions that chose them: on average {percent(best.members_search_mean)} on search, "
            f"{percent(best.members_test_mean)} on test. Part of any search score is luck."
        )
    if results.reliability and not results.reliability.population.enough and reason(results) is None:  # else the headline says it
        notes.append(
            f"The scores hardly rank the candidates: of the variance between their mean scores over all search questions, "
            f"{percent(results.reliability.population.value)} would repeat on other questions. More search questions, a larger sigma or "
            "another task would help."
        )
    if results.raced and len(results.selection.candidates.sigma) <= len(results.population.per_sigma):
        notes.append(
            f"The race kept the best of all sigmas. A sigma of which fewer than {results.most_votes} candidates finished could "
            "not be chosen alone."
        )
    if halving_of(results):
        notes.append(
            "The sigmas were compared by the best quarter of few candidates each, so the one that is left won in part by luck. It has most "
            "of the candidates: shares and means over all sigmas are not those of equal numbers."
        )
    if (screened := screening_of(results)) is not None:
        notes.append(
            f"The gradient was made of the {count(screened.examples)} search questions, so those that it put first may look better there "
            "than they are. What they are worth on other questions is what the test split says, where the random ensemble was drawn from "
            f"all {count(screened.screened)} candidates."
        )
    if results.population.nonfinite:
        notes.append(
            f"{results.population.nonfinite} candidates gave NaN or infinite outputs and scored 0: the largest sigma is too large."
        )
    notes.append("The intervals are for one run with one seed. Another seed draws other candidates; its spread is not in them.")
    notes.append(
        "The curve shows several K on the same test questions. Only the ringed one was chosen beforehand; the best-looking is no evidence."
    )
    return notes


@dataclass(frozen=True)
class Speed:
    """Candidates per second over the chunks of a run."""

    chunks: int
    median: float
    slowest: float
    fastest: float


def _speed_over_time(path: Path) -> Speed | None:
    """The speed of the chunks in metrics.jsonl, None without any."""
    if not path.is_file():
        return None
    try:
        speeds = [float(line["candidates_per_s"]) for _, line in read_json_lines(path, str(path))]
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise InputError(f"{path}: damaged ({error}); remove it, or resume the search") from error
    return Speed(len(speeds), statistics.median(speeds), min(speeds), max(speeds)) if speeds else None
