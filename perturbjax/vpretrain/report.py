"""The report page of a steered pretraining: what was done, whether it helped, beside what, and how sure one can be."""

from dataclasses import dataclass
from pathlib import Path

from perturbjax.report.page import missing_extra, read_run_record, reproduce_command, write_page
from perturbjax.report.schema import Devices
from perturbjax.report.words import count
from perturbjax.vpretrain.caveats import caveats
from perturbjax.vpretrain.config import Config
from perturbjax.vpretrain.headline import NAMES, headline, label, nats, nats_range
from perturbjax.vpretrain.results import Measured, Results, read_measured, read_results


@dataclass(frozen=True)
class RunRecord:
    """What the page reads of config.json."""

    config: Config
    devices: Devices
    versions: dict[str, str]


def write_report(run_dir: str | Path) -> Path:
    """Write ``plots/*.png`` and ``report.html`` of a finished run; a second call gives the same bytes.

    Args:
        run_dir: holds results.json, config.json and arms/MODE.json.

    Returns:
        The path of report.html.

    Raises:
        InputError: a file is missing or damaged, or the ``report`` extra is not installed.
    """
    run_dir = Path(run_dir)
    results, (record, config) = read_results(run_dir / "results.json"), read_run_record(RunRecord, run_dir)
    arms = [read_measured(run_dir / "arms" / f"{arm.mode}.json") for arm in results.arms]
    own = next(arm for arm in arms if arm.mode == results.mode)
    plots = _write_plots(run_dir, arms, own)
    values = {
        "results": results,
        "config": config,
        "headline": headline(results),
        "settings": record.config,
        "own": own,
        "names": NAMES,
        "setup": _setup(results, record),
        "command": reproduce_command("vpretrain", record.config),
        "caveats": caveats(results, record.config),
    }
    report = run_dir / "report.html"
    write_page(report, "perturbjax.vpretrain", values, {"nats": nats, "nats_range": nats_range, "label": label}, plots)
    return report


def _write_plots(run_dir: Path, arms: list[Measured], own: Measured) -> list[Path]:
    try:
        from perturbjax.vpretrain.plots import plot_designer, plot_losses, plot_probe
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error

    folder = run_dir / "plots"
    folder.mkdir(exist_ok=True)
    plots = {name: folder / f"{name}.png" for name in ("losses_steps", "losses_seconds")}
    names = tuple(own.looks[-1].validation)
    plot_losses(plots["losses_steps"], arms, names, "steps")
    plot_losses(plots["losses_seconds"], arms, names, "seconds")
    if own.updates + own.skipped:
        plots["probe"] = folder / "probe.png"
        plot_probe(plots["probe"], own)
    if any("alpha" in look.losses for arm in arms for look in arm.looks):
        plots["designer"] = folder / "designer.png"
        plot_designer(plots["designer"], arms)
    return list(plots.values())


def _domains(config: Config) -> str:
    """Which feedback steers which rows of the corpus."""
    return "; ".join(f"{label(name)} steers the rows of {domain} alone" for name, domain in config.data.domains.items())


def _setup(results: Results, record: RunRecord) -> list[tuple[str, str]]:
    data, steer, training, trained = record.config.data, record.config.steer, record.config.training, results.trained
    devices = record.devices
    looked = [f"the last {steer.subset_layers} layers"] * (steer.subset_layers is not None) + list(steer.subset_rules)
    seen = "the context, the true next token" + (", the learner's log-probabilities" if steer.designer_log_probs else "")
    return [
        ("Model", f"{results.model.name}: {results.model.source}"),
        ("Corpus", f"{trained.corpus}: {count(trained.rows)} rows, {count(trained.tokens)} tokens; {count(trained.too_long)} too long"),
        ("Feedback", results.task.source),
        ("Rows of each", f"{data.feedback_examples} steer, {data.validation_examples} for validation, {data.test_examples} for the test"),
        ("Weights", ", ".join(f"{label(name)} {weight:g}" for name, weight in data.weights.items())),
        *([("Domains", _domains(record.config))] if data.domains else []),
        ("Targets", f"K = {steer.candidates} candidates, alpha at most {steer.alpha_max:g}"),
        ("Value", f"{steer.similarity} on {', '.join(looked)}: {count(trained.subset)} of {count(trained.parameters)} parameters"),
        ("Designer", f"{count(trained.designer)} parameters; sees {seen}; Adam, learning rate {steer.designer_learning_rate:g}"),
        ("Updates", f"every {steer.meta_period} steps after {steer.burn_in}"),
        ("Optimizer", f"AdamW, learning rate {training.learning_rate:g} ({training.schedule}), weight decay {training.weight_decay:g}"),
        ("Training", f"{trained.steps} steps of {training.batch_rows} rows of {training.row_tokens} tokens, the same for every arm"),
        ("Seed", str(steer.seed)),
        ("Ran on", f"{devices.count} device(s): {', '.join(devices.kinds)} ({devices.backend})"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())),
    ]
