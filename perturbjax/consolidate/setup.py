"""What a consolidation works on: the run opened again, checked, and known by an identity of its own."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from perturbjax.consolidate.config import Config
from perturbjax.errors import InputError
from perturbjax.randopt.ensemble import Ensemble
from perturbjax.randopt.setup import Parts, reopen_ensemble
from perturbjax.runs.config import absolute_if_there
from perturbjax.runs.console import Progress
from perturbjax.runs.machine import devices, versions
from perturbjax.runs.rundir import RunDirectory
from perturbjax.tree import digest

CHAPTER = "consolidate"


def open_run(run: Path, trust: Collection[str], progress: Progress, of_members: bool = True) -> tuple[Parts, Ensemble]:
    """The parts and the ensemble of a finished search.

    Args:
        run: its directory.
        trust, progress: as for ``reopen_ensemble``.
        of_members: the model will be made of the members.

    Raises:
        InputError: there is none, it cannot be reopened, or select has fewer than 2 questions; of members, the ensemble has one alone or no
            scores.
    """
    if (chapter := RunDirectory(run).chapter) != "randopt":
        raise InputError(f"{run}: a run of {chapter}, which has no members; consolidate takes one of randopt")
    parts, ensemble = reopen_ensemble(run, progress.note, trust)
    if of_members and len(ensemble) < 2:
        more = f"perturbjax select {run} --top-k 8 --out CHOSEN may find more; perturbjax export {run} --rank 1 --out DIR writes this one"
        raise InputError(f"{run}: the ensemble has 1 member, which is one model already; {more}")
    if of_members and ensemble.scores is None:
        raise InputError(f"{run}: ensemble.json has no search scores, which weigh the members; restore the file, or search anew")
    if len(parts.splits.select) < 2:
        raise InputError(f"{run}: 1 select question; the gate needs at least 2: search with a larger `select_examples`")
    return parts, ensemble


def make_identity(config: Config, parts: Parts, ensemble: Ensemble) -> dict[str, Any]:
    """What makes two consolidations the same one."""
    of_run = ("model_fingerprint", "task_fingerprint", "split_ids", "template", "dtype")
    return {
        "chapter": CHAPTER,
        **config.settings,
        "model": parts.config.base.model,
        "task": parts.config.data.task,
        **{name: parts.identity[name] for name in of_run},
        "ensemble": digest([ensemble.members.tolist(), repr(ensemble.population), repr(ensemble.noise), ensemble.voting.rule]),
    }


def describe(config: Config, parts: Parts, run_identity: str) -> dict[str, Any]:
    """The record in config.json."""
    return {
        "chapter": CHAPTER,
        "config": config.settings,
        "run": {"path": absolute_if_there(str(config.run)), "identity": run_identity},
        "model": {"name": parts.model.name, "source": parts.model.source, "fingerprint": parts.fingerprint},
        "task": {"name": parts.task.name, "source": parts.task.source, "fingerprint": parts.identity["task_fingerprint"]},
        "prompt_clock": parts.model.tokenizer.clock,
        "versions": versions(),
        "devices": devices(),
    }
