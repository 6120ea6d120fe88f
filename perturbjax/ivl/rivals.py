"""What a value network is measured against: the base itself trained on the run's demonstrations, and proxy-tuning.

Each training is one of ``train.loop.fit`` with the run's own settings, kept in ``RUN/rivals/BASE/METHOD``: a second evaluation finds it
done, and one that was killed goes on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from perturbjax.cluster import on_main
from perturbjax.errors import InputError
from perturbjax.ivl.config import RIVALS, Config
from perturbjax.ivl.relatives import proxy_tune
from perturbjax.ivl.results import Tuning
from perturbjax.ivl.setup import demonstration_texts
from perturbjax.models.adapters import LoRA, of_decoder
from perturbjax.pretrained import Model
from perturbjax.pretrained.params import DTYPES
from perturbjax.records import to_json
from perturbjax.runs.console import Progress
from perturbjax.runs.files import MetricsLog
from perturbjax.runs.state import RunState
from perturbjax.sharding import MODEL
from perturbjax.train.config import Training
from perturbjax.train.demonstrations import Demonstration, encode_demonstrations
from perturbjax.train.language import adapter_loss, fine_tuning_loss
from perturbjax.train.loop import fit
from perturbjax.train.placement import put_params, to_host
from perturbjax.train.problem import Fitted, Look, Problem
from perturbjax.train.rows import pack_rows
from perturbjax.tree import fingerprint, leaf_paths

LORA_RATE = 10.0
"""LoRA's learning rate over that of the run. Factors that begin at zero need a higher one: V-Pretraining takes 2e-4 for LoRA and 1.5e-5
without, and Thinking Machines' "LoRA Without Regret" (2025) finds the best rates about 10 times apart over many models."""


def lora_of(base: Model) -> LoRA:
    """All seven projections of every layer; rank and alpha of V-Pretraining (arXiv 2601.22108), which are PEFT's usual ones too."""
    return LoRA(8, 16.0, of_decoder(base.config))


@dataclass(frozen=True)
class Rivals:
    """Trains rivals of the value network of a run, when they are asked for.

    Attributes:
        run: its directory.
        config: its settings.
        trained: A, the base that the value network was trained beside.
        train: the demonstrations; ``validation``: those that are only measured.
        mesh: (data, model).
        progress: told how the trainings go.
        on_state: called with the open state of each training.
    """

    run: Path
    config: Config
    trained: Model
    train: tuple[Demonstration, ...]
    validation: tuple[Demonstration, ...]
    mesh: Mesh
    progress: Progress
    on_state: Callable[[RunState], None] = lambda state: None

    def beside(self, base: Model, names: tuple[str, ...], one_vocabulary: bool) -> dict[str, Callable[[], tuple[Model, Tuning] | None]]:
        """Label -> a function that trains a rival, or finds it trained, and returns the model that answers, and what its training was,
        or None if it diverged, which is noted. Each call holds one trained model, so whoever calls one after the other needs room for one.

        Args:
            base: B, which the value network is measured on.
            names: of ``RIVALS``.
            one_vocabulary: B has the vocabulary of A.

        Raises:
            InputError: proxy-tuning has no meaning there, or a row of demonstrations is longer than B's context.
        """
        if names and (tokens := self.config.training.row_tokens) > base.config.max_positions:
            raise InputError(f"`rivals` {','.join(names)}: {base.name} takes at most {base.config.max_positions} of `row_tokens` {tokens}")
        if "proxy" in names and not one_vocabulary:
            raise InputError(f"`rivals` proxy: it adds logits of {self.trained.name} token by token, and {base.name} has other tokens")
        made: dict[str, Callable[[], tuple[Model, Tuning]]] = {
            "lora": lambda: self._tuned(base, "lora"),
            "full": lambda: self._tuned(base, "full"),
            "proxy": lambda: self._proxy(base),
        }
        return {label: partial(self._unless_diverged, label, made[name]) for name, label in RIVALS.items() if name in names}

    def _unless_diverged(self, label: str, make: Callable[[], tuple[Model, Tuning]]) -> tuple[Model, Tuning] | None:
        try:
            return make()
        except FloatingPointError as error:
            self.progress.note(f"perturbjax: warning: {label} is left out: {error} in another run")
            return None

    def _proxy(self, base: Model) -> tuple[Model, Tuning]:
        tuned, tuning = self._tuned(self.trained, "full")
        return proxy_tune(base, tuned, self.trained), tuning

    def _tuned(self, base: Model, method: str) -> tuple[Model, Tuning]:
        """A base, trained by LoRA or in full, in its own type."""
        training, dtype = self.config.training, next(iter(leaf_paths(base.params).values())).dtype
        compute = dtype if training.compute == "auto" else DTYPES[training.compute]
        layout = base.config.partition(self.mesh.shape[MODEL])
        dims = layout.dims(base.config) if layout else {}
        rows, validation = (
            pack_rows(encode_demonstrations(some, base.tokenizer), training.row_tokens) for some in (self.train, self.validation)
        )
        if method == "lora":
            training = dataclasses.replace(training, learning_rate=LORA_RATE * training.learning_rate)
            loss = adapter_loss(base.config, lora_of(base), compute, training.remat)
            start = lora_of(base).init(base.params, self.config.value.seed)
            problem = Problem(start, [(loss, put_params(base.params, self.mesh, dims))], rows, validation)
        else:
            problem = Problem(base.params, [(fine_tuning_loss(base.config, compute, training.remat), None)], rows, validation, dims=dims)
        fitted = self._fit(base, method, problem, training)
        found = to_host(fitted.params, self.mesh)
        params = lora_of(base).apply(base.params, found) if method == "lora" else found
        params = jax.tree.map(lambda leaf: np.asarray(leaf).astype(dtype, copy=False), params)
        last = fitted.looks[-1]
        count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(found))
        tuning = Tuning(base.name, count, training.learning_rate, last.step, fitted.step, last.tokens, last.seconds, fitted.stopped_early)
        return dataclasses.replace(base, name=f"{base.name}, {RIVALS[method]}", params=params), tuning

    def _fit(self, base: Model, method: str, problem: Problem, training: Training) -> Fitted:
        its = on_main(lambda: fingerprint(base.params))
        folder = self.run / "rivals" / its.removeprefix("sha256:")[:16] / method
        on_main(lambda: folder.mkdir(parents=True, exist_ok=True))
        identity = {
            "chapter": "ivl",
            "rival": method,
            "lora": to_json(lora_of(base)) if method == "lora" else None,
            "training": to_json(training),
            "seed": self.config.value.seed,
            "model_fingerprint": its,
            "demonstration_texts": demonstration_texts(self.train, self.validation),
        }
        bar: Any = None

        def on_step(step: int, steps: int, look: Look | None) -> None:
            nonlocal bar
            if bar is None and step == steps:
                self.progress.note(f"{base.name}, {RIVALS[method]}: was trained before, in {folder}")
                return
            if bar is None:
                bar = self.progress.bar(f"training {base.name}, {RIVALS[method]}", steps, step, unit="step")
            bar.update(step, **({"loss": f"{look.losses['loss']:.3f}"} if look is not None else {}))

        def on_state(state: RunState) -> None:
            self.on_state(state)
            for warning in state.warnings:
                self.progress.note(f"perturbjax: warning: {warning}")

        metrics = MetricsLog(folder / "metrics.jsonl")
        try:
            return fit(problem, training, self.config.value.seed, folder / "state", identity, self.mesh, metrics, on_step, on_state)
        finally:
            if bar is not None:
                bar.close()
