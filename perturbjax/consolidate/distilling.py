"""Distillation: the vote of K members on unlabeled questions, learned by one model.

Three trainings of equal steps on the same questions: on the vote; on the base's own answers (self-distillation, the control: what training
does that has learned nothing from the members); on the gold answers (what labels would have been worth). The published result is 91 and
62 % of the vote's gain kept, with supervised fine-tuning on hard examples (arXiv 2603.12228).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from perturbjax.consolidate.config import Config
from perturbjax.consolidate.labels import label, label_words, lessons
from perturbjax.consolidate.measuring import Arm, Asker, Option
from perturbjax.errors import InputError
from perturbjax.models.adapters import LoRA, of_decoder
from perturbjax.models.config import DecoderConfig
from perturbjax.pretrained import Model
from perturbjax.pretrained.adapter_files import write_adapter
from perturbjax.runs.files import MetricsLog
from perturbjax.runs.identity import Identity
from perturbjax.runs.state import RunState
from perturbjax.sharding import DATA, MODEL
from perturbjax.tasks.base import Example
from perturbjax.train.config import Training
from perturbjax.train.demonstrations import EncodedDemonstration
from perturbjax.train.language import adapter_loss, fine_tuning_loss
from perturbjax.train.loop import fit
from perturbjax.train.placement import put_params, to_host
from perturbjax.train.problem import Fitted, Look, Problem
from perturbjax.train.rows import pack_rows
from perturbjax.tree import digest, leaf_paths

DISTILLED, SELF, GOLD = "distilled", "self-distilled", "gold labels"
ROW_TOKENS, BATCH_ROWS = 512, 2
"""Of packed rows; a batch is a few of them, because hard questions are few."""


def adapter_of(config: Config, decoder: DecoderConfig) -> LoRA | None:
    """The adapter that is trained, None for all weights."""
    return LoRA(config.settings["rank"], rules=of_decoder(decoder)) if config.train == "lora" else None


def check_rank(config: Config, model: Model) -> None:
    """Raise ``InputError`` if a matrix has no room for the rank."""
    if (lora := adapter_of(config, model.config)) is not None:
        for matrix in lora.matrices(model.params):
            matrix.check_rank("rank", lora.rank)


def distill_arms(
    asker: Asker, config: Config, rows: Sequence[Example], identity: Identity, on_state: Callable[[RunState], None]
) -> tuple[tuple[Arm, ...], tuple[str, ...]]:
    """Labels, trains, and gives the three models; and notes.

    Args:
        asker: of the run.
        config: the settings.
        rows: questions to label.
        identity: of the consolidation.
        on_state: called with the open state of each training.

    Raises:
        InputError: there is nothing to learn.
        FloatingPointError: a loss is not finite.
    """
    labels = label(asker, rows)
    everything = config.rows == "all"
    kept = [(row, each) for row, each in zip(rows, labels.rows, strict=True) if each.voted is not None and (each.hard or everything)]
    if not kept:
        # What is refused leaves nothing: without the answers the directory is withdrawn.
        shutil.rmtree(asker.folder)
        more = "raise `examples`" + ("" if everything else ", or learn all of them with `rows` all")
        raise InputError(f"`rows` {config.rows}: on all {len(rows)} questions the members say the same as the base, or nothing; {more}")
    chosen, said = [row for row, _ in kept], [each for _, each in kept]
    taught = lessons(asker, chosen, said, config.targets == "shares")
    trainer = Trainer(asker, config, identity, on_state, len(_packed(taught.vote)))
    arms = (
        trainer.arm(DISTILLED, taught.vote, labels.tokens),
        trainer.arm(SELF, taught.base, labels.tokens, control=True),
        trainer.arm(GOLD, taught.gold, 0, control=True),
    )
    trained = f"LoRA of rank {config.settings['rank']}" if config.train == "lora" else "all weights"
    how = f"{trained}, {trainer.training.steps} steps of {trainer.training.batch_rows} rows at {trainer.training.learning_rate:g}"
    return arms, (*label_words(len(rows), said, everything), how)


def _packed(taught: Sequence[EncodedDemonstration]) -> Any:
    longest = max(len(each.prompt) + len(each.response) for each in taught)
    return pack_rows(taught, max(ROW_TOKENS, -(-longest // 64) * 64), per_demonstration=True)


@dataclass(frozen=True)
class Trainer:
    """Trainings that differ in what they learn alone.

    Attributes:
        asker, config, identity, on_state: as of ``distill_arms``.
        rows: packed rows of the vote; the steps of all trainings follow from their number.
    """

    asker: Asker
    config: Config
    identity: Identity
    on_state: Callable[[RunState], None]
    rows: int

    @property
    def training(self) -> Training:
        devices = self.asker.engine.mesh.shape[DATA]
        batch = -(-BATCH_ROWS // devices) * devices
        steps = max(1, round(self.config.epochs * self.rows / batch))
        rate = self.config.settings["learning_rate"]
        return Training(steps=steps, batch_rows=batch, learning_rate=rate, warmup=0.1, weight_decay=0.0, every=10)

    def arm(self, name: str, taught: Sequence[EncodedDemonstration], tokens: int, control: bool = False) -> Arm:
        """Trains one model, or finds it trained. ``tokens``: spent on its labels."""
        if not taught:
            raise InputError(f"{name}: no question has an answer to learn; raise `examples`")
        fitted = self._fit(name, taught)
        spent = tokens + 3 * fitted.looks[-1].tokens
        model = self.asker.model
        lora, trained = adapter_of(self.config, model.config), to_host(fitted.params, self.asker.engine.mesh)
        label = f"{len({each.id for each in taught})} questions"
        if lora is None:
            return Arm(name, (Option(label, lambda: trained, spent),), control)
        merged, write = partial(lora.apply, model.params, trained), partial(write_adapter, lora, trained, model)
        return Arm(name, (Option(label, merged, spent, write),), control)

    def _fit(self, name: str, taught: Sequence[EncodedDemonstration]) -> Fitted:
        """A training; one that is done is read from its last commit."""
        model, mesh, rows = self.asker.model, self.asker.engine.mesh, _packed(taught)
        lora = adapter_of(self.config, model.config)
        layout = model.config.partition(mesh.shape[MODEL])
        dims = layout.dims(model.config) if layout else {}
        dtype = next(iter(leaf_paths(model.params).values())).dtype
        if lora is None:
            problem = Problem(model.params, [(fine_tuning_loss(model.config, dtype), None)], rows, dims=dims)
        else:
            start = lora.init(model.params, self.asker.parts.config.search.seed)
            problem = Problem(start, [(adapter_loss(model.config, lora, dtype), put_params(model.params, mesh, dims))], rows)
        folder = self.asker.folder.parent / "training" / name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        identity = {**self.identity, "arm": name, "steps": self.training.steps, "taught": digest([list(each.response) for each in taught])}
        bar: Any = None

        def on_step(step: int, steps: int, look: Look | None) -> None:
            nonlocal bar
            if bar is None and step == steps:
                return
            bar = bar or self.asker.progress.bar(f"training on {name}", steps, step)
            bar.update(step, **({"loss": f"{look.losses['loss']:.3f}"} if look is not None else {}))

        def opened(state: RunState) -> None:
            self.on_state(state)
            for warning in state.warnings:
                self.asker.progress.note(f"perturbjax: warning: {warning}")

        seed, metrics = self.asker.parts.config.search.seed, MetricsLog(folder / "metrics.jsonl")
        try:
            return fit(problem, self.training, seed, folder / "state", identity, mesh, metrics, on_step, opened)
        finally:
            if bar is not None:
                bar.close()
