"""The report page of a training of a value network: what was done, whether it helped, whom, and how sure one can be."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perturbjax.ivl.caveats import caveats
from perturbjax.ivl.config import Config
from perturbjax.ivl.headline import headline, setting_words
from perturbjax.ivl.map_statistics import MapStatistics, TokenLoss
from perturbjax.ivl.results import WITH_VALUE, BaseEntries, Evaluation, Results, read_evaluation, read_results
from perturbjax.ivl.results_table import stored_words, throughput_words
from perturbjax.report.page import missing_extra, read_run_record, reproduce_command, write_page
from perturbjax.report.schema import Devices, Entry
from perturbjax.report.words import count, rate

_NAMES = {
    "residual": "residual: it sees the tokens",
    "cascade": "cascade: it sees the base's distribution",
    "cascade_plus": "cascade_plus: it sees the tokens and the base's distribution",
    "multiplicative": "multiplicative: it sees the tokens and scales the base's logits",
    "linear": "linear: it sees the base's logits at one position",
    "mlp": "mlp: it sees the base's logits at one position",
}


@dataclass(frozen=True)
class RunRecord:
    """What the page reads of config.json."""

    config: Config
    devices: Devices
    versions: dict[str, str]


@dataclass(frozen=True)
class Measured:
    """One base of the page, with and without the value network.

    Attributes:
        name: of the base.
        asked: the task, and how the value network was added where that is not the plain way.
        about: how the value network was added, and what asked the questions.
        entries: the figures.
        gated: whether a gate could leave tokens to the base.
    """

    name: str
    asked: tuple[str, ...]
    about: tuple[str, ...]
    entries: BaseEntries
    gated: bool = False

    @property
    def lines(self) -> list[tuple[str, Entry, bool]]:
        """(label, entry, whether it is what the page is about) of each system, the base first."""
        systems = [(name, entry, name == WITH_VALUE) for name, entry in self.entries.systems.items()]
        return [(self.entries.model.name, self.entries.base, False), *systems]

    @property
    def lenient(self) -> bool:
        """Whether lenient scoring differs from strict scoring anywhere."""
        return any(entry.lenient_accuracy != entry.accuracy for _, entry, _ in self.lines)

    @property
    def worst(self) -> tuple[TokenLoss, ...]:
        """Tokens that a vocabulary map gives no exact partner, the likeliest first if probabilities were measured, else numbers."""
        statistics = self.entries.map_statistics
        if statistics is None:
            return ()
        return statistics.number_examples if statistics.base_mass is None else statistics.base_mass.worst


def write_report(run_dir: str | Path) -> Path:
    """Write ``plots/*.png`` and ``report.html`` of a finished run; a second call gives the same bytes.

    Args:
        run_dir: holds results.json and config.json and, of other bases measured since, evaluation-NAME.json.

    Returns:
        The path of report.html.

    Raises:
        InputError: a file is missing or damaged, or the ``report`` extra is not installed.
    """
    run_dir = Path(run_dir)
    results, (record, config) = read_results(run_dir / "results.json"), read_run_record(RunRecord, run_dir)
    evaluations = [read_evaluation(path) for path in sorted(run_dir.glob("evaluation-*.json"))]
    first = Measured(results.model.name, (WITH_VALUE,), (), results.entries)
    others = [_measured(each) for each in evaluations]
    values = {
        "results": results,
        "config": config,
        "headline": headline(results, evaluations),
        "settings": record.config,
        "first": first,
        "others": others,
        "setup": _setup(results, record),
        "command": reproduce_command("ivl", record.config),
        "caveats": caveats(results, record.config, evaluations),
    }
    plots = _write_plots(run_dir, results, record.config, [first, *others])
    report = run_dir / "report.html"
    write_page(report, "perturbjax.ivl", values, {"map_lines": map_lines}, plots)
    return report


def _measured(evaluation: Evaluation) -> Measured:
    gate = "" if evaluation.gate is None else f", only where the base's entropy is above {evaluation.gate:g} nats"
    vocabulary = "one vocabulary" if evaluation.vocabulary is None else f"vocabularies joined by the map {evaluation.vocabulary}"
    about = (
        f"Model: {evaluation.entries.model.source}.",
        f"Task: {evaluation.task.source}; prompt {evaluation.template}.",
        f"z_V added with weight {evaluation.alpha:g}{gate}; {vocabulary}.",
    )
    asked = tuple(part for part in (evaluation.task.name, setting_words(evaluation)) if part)
    return Measured(evaluation.entries.model.name, asked, about, evaluation.entries, evaluation.gate is not None)


def map_lines(statistics: MapStatistics) -> list[tuple[str, int, int, int]]:
    """(tokens of the base, exact, in part, without partner), in numbers of tokens: all of them, single digits, longer numbers."""
    exact, none = (round(part * statistics.tokens) for part in (statistics.exact, statistics.none))
    digits = [("single digits", statistics.single_digits), ("numbers of several digits", statistics.numbers)]
    return [
        ("all tokens", exact, statistics.tokens - exact - none, none),
        *((name, found.exact, found.partial, found.none) for name, found in digits),
    ]


def _write_plots(run_dir: Path, results: Results, config: Config, measured: Sequence[Measured]) -> list[Path]:
    try:
        from perturbjax.ivl.plots import plot_effects, plot_gains, plot_learning
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error

    folder = run_dir / "plots"
    folder.mkdir(exist_ok=True)
    plots = [folder / f"{name}.png" for name in ("learning_curves", "effects")]
    plot_learning(plots[0], results, config.value.power)
    plot_effects(plots[1], [((each.name, *each.asked), each.entries) for each in measured])
    if results.gains:
        plots.append(folder / "gains.png")
        plot_gains(plots[-1], results)
    return plots


def _setup(results: Results, record: RunRecord) -> list[tuple[str, str]]:
    bases, data, value, training = record.config.bases, record.config.data, record.config.value, record.config.training
    shown, devices, last = results.demonstrations, record.devices, results.looks[-1]
    layers = "all of the base's" if value.layers is None else f"{value.layers} of the base's"
    network = f"{_NAMES[value.connection]}; {count(results.parameters)} parameters"
    if value.connection not in ("linear", "mlp"):
        start = "the base's weights" if value.init == "base" else "random weights"
        network += f"; layers: {layers}; begins with {start}, head {value.head}"
    learned = "the responses" if value.outputs == "tokens" else "the first byte of each token of the responses"
    norm = "|z_V|" if value.power == "1" else "z_V squared"
    steps = f"{last.step} steps" + (", stopped early" if results.stopped_early else "")
    return [
        ("Base", f"{results.model.name}: {results.model.source}"),
        *([("Also trained beside", ", ".join(bases.also))] if bases.also else []),
        *([("Held out", f"{bases.held_out}, for validation")] if bases.held_out else []),
        ("Task", f"{results.task.name}: {results.task.source}"),
        ("Prompt", results.template),
        ("Demonstrations", f"{shown.source}: {count(shown.train)} to train on, {count(shown.validation)} for validation"),
        ("Left out", f"{count(shown.too_long)} too long, {count(shown.asked_in_test)} that ask a test question"),
        ("Value network", network),
        ("Loss", f"cross-entropy on {learned} + {value.penalty:g} mean {norm}"),
        ("Optimizer", f"AdamW, learning rate {training.learning_rate:g} ({training.schedule}), weight decay {training.weight_decay:g}"),
        ("Batch", f"{training.batch_rows} rows of {training.row_tokens} tokens; {count(shown.train_rows)} rows in all"),
        ("Training", f"{steps}, {count(last.tokens)} tokens; patience {training.patience or 'off'}"),
        *([("Base's logits", f"from files: {stored_words(results.logits)}")] if results.logits else []),
        ("Throughput", f"{throughput_words(results)}, in {rate(last.seconds)} s of steps"),
        ("Questions", f"{count(results.entries.base.n)} at the end" + (f", of {data.task}" if data.task else "")),
        ("Seed", str(value.seed)),
        ("Weights of the base", bases.dtype),
        ("Ran on", f"{devices.count} device(s): {', '.join(devices.kinds)} ({devices.backend})"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())),
    ]
