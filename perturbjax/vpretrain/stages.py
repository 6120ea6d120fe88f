"""A whole steered pretraining with its controls, from settings to report, arm by arm, resumable at every commit."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from perturbjax.cluster import is_main, on_main
from perturbjax.cluster.peers import Peers
from perturbjax.errors import InputError
from perturbjax.models.adapters import trainable_count
from perturbjax.pretrained.export import export_safetensors
from perturbjax.records import from_json, to_json
from perturbjax.report import Source
from perturbjax.report.words import percent
from perturbjax.runs.console import SILENT, Progress
from perturbjax.runs.files import MetricsLog, read_json, write_json
from perturbjax.runs.identity import check_agreement, default_path, fields_of
from perturbjax.runs.machine import make_mesh, require
from perturbjax.runs.rundir import RunDirectory
from perturbjax.train.loop import fit
from perturbjax.train.placement import to_host
from perturbjax.train.problem import Fitted, Look
from perturbjax.tree import fingerprint
from perturbjax.vpretrain.arms import Experiment
from perturbjax.vpretrain.artifacts import save_designer, vocabulary_of
from perturbjax.vpretrain.config import MODES, Config, Mode
from perturbjax.vpretrain.evaluation import target_examples
from perturbjax.vpretrain.experiment import in_dtype, make_experiment, merged
from perturbjax.vpretrain.figures import arm_figures
from perturbjax.vpretrain.headline import WITH_DESIGNER, labels
from perturbjax.vpretrain.measuring import Measuring
from perturbjax.vpretrain.report import write_report
from perturbjax.vpretrain.results import START, VERSION, Measured, Results, Trained, read_results
from perturbjax.vpretrain.results_table import results_table
from perturbjax.vpretrain.setup import CHAPTER, LATER, Packed, Parts, check_layout, describe_run, load_parts, pack


def run(config: Config, progress: Progress = SILENT, peers: Peers | None = None) -> Results:
    """Trains the arms, measures each on test rows, writes the run directory.

    Everything is validated before the run directory is made, and no arm that is done is done again: with ``resume`` a finished run gets the
    controls that it does not have. In a run of several processes all of
    them call it; process 0 writes.

    Args:
        config: the settings.
        progress: told what goes on, on process 0.
        peers: the other processes, if a command runs this.

    Returns:
        The content of results.json.

    Raises:
        InputError: the settings, or what they name, cannot be used; no directory was made or changed.
        FloatingPointError: the loss of the run's own arm is not finite; what was committed before is intact.
        Exception: anything else, with a note that says what is safe and how to go on.
    """
    config.validate()
    progress, peers = progress if is_main() else SILENT, peers or Peers(None, SILENT.note)
    on_main(lambda: _check(config))
    parts = load_parts(config, progress.note)
    check_agreement(parts.identity)
    mesh = make_mesh(config.machine)
    check_layout(config, mesh)
    directory = RunDirectory(config.run.out or default_path(CHAPTER, parts.model.name, parts.identity, config))
    defaults = fields_of(Config()) | {name: parts.identity[name] for name in LATER}
    clock, identity = directory.claim(parts.identity, parts.model.tokenizer.clock, config.run.resume, defaults, progress.note)
    parts = replace(parts, identity=identity)
    parts.model.tokenizer.clock = clock
    packed = pack(parts, progress.note)
    on_main(lambda: None if directory.config.exists() else directory.create(parts.identity, describe_run(parts)))
    with directory.written("vpretrain", peers):
        if modes := on_main(lambda: _modes(directory, config.steer.arms)):
            _Stages(parts, packed, mesh, directory, progress, peers).all(modes)
        results = from_json(Results, on_main(lambda: read_json(directory.results)), str(directory.results))
        on_main(lambda: _finish(directory, results, progress))
        return results


def _check(config: Config) -> None:
    """Refuses what would fail after hours, before anything is loaded."""
    require("grain", "jinja2", "matplotlib", "optax", "safetensors")
    if config.run.out is not None:
        RunDirectory(config.run.out).check_usable(config.run.resume)


def _modes(directory: RunDirectory, asked: Collection[Mode]) -> list[Mode]:
    """Those that the results are to have; empty where they have all that are asked for."""
    try:
        results = read_results(directory.results)
    except InputError:  # not finished, or damaged
        return [*asked]
    before = {*(arm.mode for arm in results.arms), *results.diverged}
    return [] if before.issuperset(asked) else [mode for mode in MODES if mode in before or mode in asked]


class _Stages:
    """Step 0 and the arms, each written when it is known."""

    def __init__(self, parts: Parts, packed: Packed, mesh: Mesh, directory: RunDirectory, progress: Progress, peers: Peers):
        self._parts, self._packed, self._mesh, self._directory = parts, packed, mesh, directory
        self._progress, self._peers = progress, peers
        self._experiment: Experiment = make_experiment(parts, packed, mesh)
        self._arms = directory.path / "arms"
        self._measuring = Measuring(parts, self._experiment, mesh, progress)

    def all(self, modes: Sequence[Mode]) -> None:
        parts, config, experiment = self._parts, self._parts.config, self._experiment
        on_main(lambda: self._arms.mkdir(exist_ok=True))
        measured = [self._once(START, lambda: self._measuring.arm(START, in_dtype(parts)))]
        diverged: list[Mode] = []
        for mode in modes:
            try:
                measured.append(self._once(mode, lambda mode=mode: self._arm(mode)))
            except FloatingPointError as error:
                if mode == config.steer.mode:
                    raise
                self._progress.note(f"perturbjax: warning: {error}; this control is left out")
                diverged.append(mode)
        corpus, subset = self._packed.corpus, experiment.task.subset
        trained = Trained(
            config.data.corpus,
            len(corpus),
            corpus.tokens,
            len(corpus.left_out),
            config.training.total_steps(len(corpus)),
            parts.overlaps,
            trainable_count(experiment.trained),
            sum(int(np.prod(leaf.shape)) for leaf in jax.eval_shape(subset.take, experiment.trained).values()),
            trainable_count(parts.designer_params),
        )
        names = ", ".join(labels(parts.feedback).values())
        task = Source(names, "; ".join(each.source for each in parts.feedback.values()))
        figures = arm_figures(measured, config.steer.mode, config.steer.seed)
        model = Source(parts.model.name, parts.model.source)
        made = next(each.fingerprint for each in measured if each.mode == config.steer.mode)
        results = Results(VERSION, model, task, config.steer.mode, trained, figures, tuple(diverged), made)
        on_main(lambda: write_json(self._directory.results, to_json(results)))

    def _once(self, mode: str, make: Callable[[], Measured]) -> Measured:
        path = self._arms / f"{mode}.json"
        if not on_main(lambda: path.exists()):
            found = make()
            on_main(lambda: write_json(path, to_json(found)))
        return from_json(Measured, on_main(lambda: read_json(path)), str(path))

    def _arm(self, mode: Mode) -> Measured:
        parts, own = self._parts, mode == self._parts.config.steer.mode
        fitted = self._train(mode, own)
        params = merged(parts, to_host(fitted.params, self._mesh))
        measured = self._measuring.arm(mode, params)
        counts, examples, drift = {}, (), None
        if fitted.auxiliary is not None:
            auxiliary = to_host(fitted.auxiliary, self._mesh)
            counts = {name: int(auxiliary[name]) for name in ("updates", "skipped")}
            if "designer" in auxiliary:
                examples, drift = target_examples(self._experiment, params, auxiliary, parts.model)
                if own:
                    folder, vocabulary = self._directory.path / "designer", vocabulary_of(parts.model.tokenizer)
                    on_main(lambda: save_designer(folder, parts.designer, auxiliary["designer"], vocabulary))
        if own:
            on_main(lambda: self._save_model(params))
        made = fingerprint(params) if own else None
        return replace(measured, looks=fitted.looks, examples=examples, drift=drift, fingerprint=made, **counts)

    def _save_model(self, params: Any) -> None:
        """``model/``, once: a kill after it finds it whole."""
        out = self._directory.path / "model"
        if not out.exists():
            export_safetensors(self._parts.model, params, out)

    def _train(self, mode: Mode, own: bool) -> Fitted:
        parts = self._parts
        bar: Any = None

        def on_state(state: Any) -> None:
            self._peers.freeze = state.freeze
            for warning in state.warnings:
                self._progress.note(f"perturbjax: warning: {warning}")

        def on_step(step: int, steps: int, look: Look | None) -> None:
            nonlocal bar
            if bar is None:
                bar = self._progress.bar(f"training, {mode}", steps, step, unit="step")
            bar.update(step, **(_figures(look) if look is not None else {}))

        name = "metrics.jsonl" if own else f"metrics-{mode}.jsonl"
        try:
            return fit(
                replace(self._experiment.problem(mode), accuracy=self._measuring.accuracy),
                parts.config.training,
                parts.config.steer.seed,
                self._directory.state / mode,
                {**parts.identity, "arm": mode},
                self._mesh,
                MetricsLog(self._directory.path / name),
                on_step,
                on_state,
            )
        except FloatingPointError as error:
            other = " or designer_learning_rate" if mode in WITH_DESIGNER else ""
            raise FloatingPointError(f"arm {mode}: {error}{other}") from error
        finally:
            if bar is not None:
                bar.close()


def _figures(look: Look) -> dict[str, str]:
    figures = {"loss": f"{look.losses.get('plain', look.losses['loss']):.3f}"}
    shown = labels(look.validation)
    figures |= {shown[name]: f"{value:.3f}" for name, value in look.validation.items()}
    figures |= {f"{shown[name]} right": percent(value) for name, value in look.accuracy.items()}
    if look.updates:
        figures |= {name: f"{look.updates[-1][name]:.2g}" for name in ("predicted", "realized") if name in look.updates[-1]}
    if look.tokens_per_s is not None:
        figures["tokens/s"] = f"{look.tokens_per_s:.0f}"
    return figures


def _finish(directory: RunDirectory, results: Results, progress: Progress) -> None:
    """On process 0: writes the report, shows the table, says where things are."""
    report = write_report(directory.path)
    progress.line(results_table(results))
    progress.line()
    progress.line(f"run directory  {directory.path.absolute()}")
    progress.line(f"model          {(directory.path / 'model').absolute()}")
    progress.line(f"report         {report.absolute()}")
