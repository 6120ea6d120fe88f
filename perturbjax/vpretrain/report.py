"""The report page of a steered pretraining: what was done, whether it helped, beside what, and how sure one can be."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from perturbjax.errors import InputError
from perturbjax.report.accounting import wilson
from perturbjax.report.page import missing_extra, read_run_record, reproduce_command, write_page
from perturbjax.report.schema import Devices
from perturbjax.report.words import count
from perturbjax.vpretrain.caveats import caveats
from perturbjax.vpretrain.config import Config, Data, Steer
from perturbjax.vpretrain.headline import NAMES, WITH_DESIGNER, headline, labels, nats, nats_range, seconds
from perturbjax.vpretrain.results import START, Measured, Results, probe_pairs, read_measured, read_results


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
    arms = [_read_arm(run_dir / "arms" / f"{arm.mode}.json", arm.mode) for arm in results.arms]
    own = next(arm for arm in arms if arm.mode == results.mode)
    # config.json has those that the run began with, and may have been asked for more since.
    controls = tuple(arm.mode for arm in results.arms if arm.mode not in (START, results.mode)) + results.diverged
    record = replace(record, config=replace(record.config, steer=replace(record.config.steer, controls=controls)))
    plots, shown = _write_plots(run_dir, arms, own), labels(results.own.sets)
    values = {
        "results": results,
        "config": config,
        "headline": headline(results),
        "settings": record.config,
        "own": own,
        "names": NAMES,
        "steered": steered_words(record.config.steer),
        "setup": _setup(results, record),
        "command": reproduce_command("vpretrain", record.config),
        "caveats": caveats(results, record.config),
        "asked_words": _asked_words(own, record.config.data),
    }
    report = run_dir / "report.html"
    filters = {"nats": nats, "nats_range": nats_range, "label": shown.__getitem__, "seconds": seconds}
    write_page(report, "perturbjax.vpretrain", values, filters, plots)
    return report


def _read_arm(path: Path, mode: str) -> Measured:
    arm = read_measured(path)
    if arm.mode != mode:
        raise InputError(f"{path}: mode {arm.mode}, {mode} is required; restore the file")
    if mode != START and (not arm.looks or not arm.looks[-1].validation):
        raise InputError(f"{path}: looks with losses of validation are required; restore the file")
    return arm


def _write_plots(run_dir: Path, arms: list[Measured], own: Measured) -> list[Path]:
    try:
        from perturbjax.vpretrain.plots import plot_designer, plot_learning, plot_probe
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error

    folder = run_dir / "plots"
    folder.mkdir(exist_ok=True)
    plots = {name: folder / f"{name}.png" for name in ("learning_steps", "learning_seconds")}
    plot_learning(plots["learning_steps"], arms, own.looks[-1], "steps")
    plot_learning(plots["learning_seconds"], arms, own.looks[-1], "seconds")
    if probe_pairs(own.looks):
        plots["probe"] = folder / "probe.png"
        plot_probe(plots["probe"], [own.looks])
    if any("alpha" in look.losses for arm in arms for look in arm.looks):
        plots["designer"] = folder / "designer.png"
        plot_designer(plots["designer"], arms)
    return list(plots.values())


def _asked_words(own: Measured, data: Data) -> str:
    """How many questions an accuracy of the looks is of, and what chance makes of so few; empty where none were asked."""
    asked = data.asked_at_looks("choice")
    if not own.looks[-1].accuracy or not asked:
        return ""
    low, high = wilson(asked / 2, asked)
    few = f"of {count(asked)} validation questions of each set, which are none of the test's"
    return f"{few}; of so few, a share near one half is known to about ±{50 * (high - low):.0f} points"


def steered_words(steer: Steer) -> str:
    """What the targets of the run's own arm were."""
    when = "Before each step" if steer.meta_period == 1 else f"Before one step in {steer.meta_period}"
    when += f", but for the first {steer.burn_in}," if steer.burn_in else ""
    return {
        "plain": "No designer: targets were the true tokens, as in any pretraining.",
        "value": f"{when} the designer took one up the value: the first-order fall of the feedback loss by the model's next step.",
        "random": f"{when} the designer took one up a random direction in place of the value: feedback steers nothing.",
        "uniform": "No designer: a fixed share of each target lies on all candidates alike.",
        "self": "No designer: a fixed share of each target lies on the candidates as the model itself holds them likely.",
        "oracle": f"{when} the direction of the feedback was taken anew. No designer: each target leans to the candidate of highest value.",
        "fine_tuning": "No designer: the model took its steps on the feedback's own rows in place of the corpus.",
    }[steer.mode]


def _domains(config: Config, names: Mapping[str, str]) -> str:
    """Which feedback steers which rows of the corpus."""
    return "; ".join(f"{names[name]} steers the rows of {domain} alone" for name, domain in config.data.domains.items())


def _setup(results: Results, record: RunRecord) -> list[tuple[str, str]]:
    config, trained = record.config, results.trained
    data, steer, training, adapt = config.data, config.steer, config.training, config.adapt
    devices, names = record.devices, labels(data.feedback)
    last = "the last layer" if steer.subset_layers == 1 else f"the last {steer.subset_layers} layers"
    looked = [last] * bool(steer.subset_layers) + list(map(str, steer.subset_rules))
    lora = f"low-rank changes of rank {adapt.lora_rank or 8}, alpha {adapt.lora_alpha:g}" if adapt.train == "lora" else "all parameters"
    seen = "the context, the true next token" + (", the learner's log-probabilities" if steer.designer_log_probs else "")
    modes = {arm.mode for arm in results.arms}
    targets = [("Targets", f"K = {steer.candidates} candidates, alpha at most {steer.alpha_max:g}")]
    if modes & {*WITH_DESIGNER, "oracle"}:
        targets += [
            ("Value", f"{steer.similarity} on {', '.join(looked)}: {count(trained.subset)} of {count(trained.parameters)} parameters"),
            ("Updates", f"before one step in {steer.meta_period}, from step {steer.burn_in + 1} on"),
        ]
    if modes & {*WITH_DESIGNER}:
        adam = f"Adam, learning rate {steer.designer_learning_rate:g}"
        targets.append(("Designer", f"{count(trained.designer)} parameters; sees {seen}; {adam}"))
    return [
        ("Model", f"{results.model.name}: {results.model.source}"),
        ("Corpus", f"{trained.corpus}: {count(trained.rows)} rows, {count(trained.tokens)} tokens; {count(trained.too_long)} too long"),
        ("Feedback", results.task.source),
        ("Rows of each", f"{data.feedback_examples} steer, {data.validation_examples} for validation, {data.test_examples} for the test"),
        ("Weights", ", ".join(f"{names[name]} {weight:g}" for name, weight in data.weights.items())),
        *([("Domains", _domains(config, names))] if data.domains else []),
        ("Trained", f"{lora}: {count(trained.parameters)}"),
        *(targets if any(arm.alpha is not None for arm in results.arms) else []),
        ("Optimizer", f"AdamW, learning rate {training.learning_rate:g} ({training.schedule}), weight decay {training.weight_decay:g}"),
        ("Training", f"{trained.steps} steps of {training.batch_rows} rows of {training.row_tokens} tokens, the same for every arm"),
        ("Seed", str(steer.seed)),
        ("Ran on", f"{devices.count} device(s): {', '.join(devices.kinds)} ({devices.backend})"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())),
    ]
