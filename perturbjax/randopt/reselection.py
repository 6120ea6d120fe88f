"""Choosing again: other members, another number of them, another vote, on the committed scores of a search."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from perturbjax.errors import InputError, positive_integer
from perturbjax.randopt.config import Config
from perturbjax.randopt.ensemble import Ensemble
from perturbjax.randopt.flow import Flow, SearchRecord, run_base
from perturbjax.randopt.members import BEST, MEMBER_RULES
from perturbjax.randopt.pools import finalists
from perturbjax.randopt.results import Option, Way
from perturbjax.randopt.selection import choose_members
from perturbjax.randopt.setup import make_engine, reopen, with_candidates
from perturbjax.randopt.table import ScoreTable, read_table
from perturbjax.randopt.voting import MAJORITY, VOTE_RULES
from perturbjax.records import to_json
from perturbjax.runs.console import SILENT, Progress
from perturbjax.runs.files import new_directory, read_json, write_json
from perturbjax.runs.rundir import RunDirectory

VERSION = 1
"""Of the layout of selection.json."""


@dataclass(frozen=True)
class Reselection:
    """The content of selection.json.

    Attributes:
        run: the run directory whose scores these are; ``identity`` is the digest of its identity.
        candidates: of its population; ``finalists``: those that answered every search question, of which members are chosen.
        examples: of the select split, on which everything here was measured.
        base: accuracy of the unperturbed model on them.
        way: how the members are chosen and vote; ``tried``: all ways that were compared.
        K: how many members; ``by_k``: the numbers that were compared.
        tokens: spent on choosing.
    """

    version: int
    run: str
    identity: str
    candidates: int
    finalists: int
    examples: int
    base: float
    way: Way
    tried: tuple[Way, ...]
    K: int
    by_k: tuple[Option, ...]
    tokens: int


def check_rules(top_k: int | None, votes: Sequence[str], members: Sequence[str]) -> None:
    """Raise ``InputError`` unless these can be chosen from, whatever the run."""
    if top_k is not None:
        positive_integer("top_k", top_k)
    for name, given, known in (("vote", votes, VOTE_RULES), ("members", members, MEMBER_RULES)):
        if not given or not set(given) <= set(known) or len(set(given)) < len(given):
            raise InputError(f"`{name}` {','.join(given)}: one or several of {', '.join(known)} are required, each once")


def reselect(
    run: str | Path,
    top_k: int | None = None,
    votes: Sequence[str] = (MAJORITY,),
    members: Sequence[str] = (BEST,),
    trusted: Collection[str] = (),
    progress: Progress = SILENT,
) -> tuple[Reselection, Ensemble]:
    """Chooses members on the committed scores of a search that has ended or was stopped; what is run are a few times ``top_k`` candidates
    on the select questions. The test questions are not looked at, and the run is not changed.

    Args:
        run: the run directory.
        top_k: how many may vote at most; K of them is chosen. The run's own when None.
        votes: rules of ``VOTE_RULES``, of which select chooses; a tie goes to the earlier.
        members: rules of ``MEMBER_RULES``, likewise.
        trusted: each ``module:attribute`` among the run's data that may be imported.
        progress: told what goes on.

    Returns:
        What was chosen from what, and the ensemble.

    Raises:
        InputError: there are no such rules, no scores, or fewer than ``top_k`` candidates that answered every search question; or the run
            cannot be reopened.
    """
    check_rules(top_k, votes, members)
    table, record, top_k = _scores(RunDirectory(Path(run)), top_k, trusted, progress)
    parts = with_candidates(reopen(Path(run), progress.note, trusted), Path(run))
    engine = make_engine(parts)
    candidates = parts.candidates(table.scores)
    record = replace(record, scores=record.scores[: len(candidates)])  # a search that was stopped may not have chosen all of them
    flow = Flow(engine, parts.task, parts.splits, candidates, record, top_k, parts.template, progress=progress)
    prepared = engine.prepare(parts.splits.select, parts.template)
    base = run_base(engine, prepared)
    choice = choose_members(flow, prepared, members, votes)
    chosen = choice.order[: choice.K]
    indices, scores = candidates.index_of(chosen), record.mean_scores[chosen]
    ensemble = Ensemble(parts.population, indices, parts.noise, parts.fingerprint, scores, choice.way.vote)
    reselection = Reselection(
        version=VERSION,
        run=str(Path(run).absolute()),
        identity=read_json(RunDirectory(Path(run)).config)["identity_digest"],
        candidates=len(candidates),
        finalists=len(finalists(table.scores)),
        examples=len(parts.splits.select),
        base=float(base.scores[0].mean(dtype=np.float64)),
        way=choice.way,
        tried=choice.tried,
        K=choice.K,
        by_k=choice.by_k,
        tokens=choice.tokens + int(base.tokens[0]),
    )
    return reselection, ensemble


def write_reselection(out: Path, reselection: Reselection, ensemble: Ensemble) -> None:
    """Writes a directory that ``evaluate``, ``predict`` and ``export`` take as they take a run, whole or not at all.

    Args:
        out: a directory yet to be made, or an empty one.
        reselection, ensemble: as ``reselect`` returns them; the settings are copied from the run.
    """
    with new_directory(out) as directory:
        made = RunDirectory(directory)
        write_json(made.config, read_json(RunDirectory(Path(reselection.run)).config))
        write_json(made.selection, to_json(reselection))
        ensemble.save(made.ensemble)


def _scores(
    directory: RunDirectory, top_k: int | None, trusted: Collection[str], progress: Progress
) -> tuple[ScoreTable, SearchRecord, int]:
    """What was committed, and how many may vote; before any model is loaded."""
    config = directory.read_settings(Config, trusted)
    table = read_table(directory, config.race, progress.note)
    most, count = len(finalists(table.scores)), top_k or config.search.top_k
    if count > most:
        what = f"`top_k` {count}: {most} of {len(table.scores)} candidates answered all {config.race.examples} search questions"
        raise InputError(f"{what}; lower it" + ("" if directory.results.exists() else ", or continue the search"))
    # The base is not scored on search again: no choice depends on it.
    unknown = np.full(config.race.examples, np.nan)
    return table, SearchRecord.of(config.race, table, unknown, 0), count
