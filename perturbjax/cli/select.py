"""``perturbjax select``: choose the members of an ensemble again, on the committed scores of a search."""

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from perturbjax.cli.outputs import check_new_directory, check_outside, check_population
from perturbjax.randopt.voting import MAJORITY, VOTE_RULES
from perturbjax.report.words import count, fact_lines, percent
from perturbjax.runs.compile_cache import use_compile_cache
from perturbjax.runs.console import Console
from perturbjax.runs.rundir import RunDirectory

if TYPE_CHECKING:
    from perturbjax.randopt.ensemble import Ensemble
    from perturbjax.randopt.reselection import Reselection


@dataclass(frozen=True)
class SelectConfig:
    """Choose again who votes and how, on the scores that a search has committed: no candidate is searched again.

    - more votes: perturbjax select RUN --top-k 20 --out CHOSEN
    - the better of two votes: perturbjax select RUN --vote majority,weighted --out CHOSEN
    - members that complement each other: perturbjax select RUN --members best,greedy --out CHOSEN
    - then: perturbjax evaluate CHOSEN

    The search may have ended or been stopped; RUN is not changed. Of several rules the select questions choose, and how many of --top-k
    vote. The test questions are not looked at: perturbjax evaluate measures on questions that chose nothing."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run directory of a search (randopt)."""
    out: Path | None = None
    """Directory to write, which predict, evaluate and export take as a run; must not exist, or be empty. Only shown when left out."""
    top_k: int | None = None
    """How many of the best candidates may vote; the run's own when left out."""
    vote: tuple[str, ...] = (MAJORITY,)
    """How they vote, as listed above. Of several, comma separated, select chooses."""
    members: tuple[str, ...] = ("best",)
    """best: those of the highest search scores; greedy: one by one the candidate with which the vote on select is best, of the 2 K best
    (half of the select questions pick, the other half measure). Of both, comma separated, select chooses."""
    trust: tuple[str, ...] = ()
    """As for perturbjax evaluate."""
    compile_cache: str = "auto"
    """As for randopt."""


_VOTES = [f"{name} ({rule.help})" for name, rule in VOTE_RULES.items()]
SelectConfig.__doc__ = f"{inspect.cleandoc(SelectConfig.__doc__ or '')}\n\nVotes: {', '.join(_VOTES)}."


def run_select(config: SelectConfig, console: Console) -> None:
    """Choose, show, and write where that was asked for."""
    check_population(config.run, "select")
    if config.out is not None:
        check_new_directory(config.out)
        RunDirectory(config.out).check_usable(resume=False)
        check_outside(config.out, config.run)
    use_compile_cache(config.compile_cache, console)
    from perturbjax.randopt.reselection import reselect, write_reselection

    reselection, ensemble = reselect(config.run, config.top_k, config.vote, config.members, config.trust, console)
    for line in _lines(reselection, ensemble):
        console.line(line)
    if config.out is None:
        console.line("nothing was written; give --out to keep this ensemble")
        return
    write_reselection(config.out, reselection, ensemble)
    console.line(f"written to {config.out}; measure it with: perturbjax evaluate {config.out}")


def _lines(found: "Reselection", ensemble: "Ensemble") -> Iterator[str]:
    from perturbjax.randopt.results_table import sigma_words

    yield f"right on {count(found.examples)} select questions, on which all this was chosen"
    for way in found.tried:
        mark = " (chosen)" if way == found.way else ""
        yield f"  {percent(way.accuracy):>7}  {way.members} of {sigma_words(way.sigma)}, {way.vote} vote{mark}"
    yield f"  {percent(found.base):>7}  base model"
    members = ", ".join(map(str, ensemble.members[:10].tolist())) + (", ..." if len(ensemble) > 10 else "")
    facts: Iterable[tuple[str, str]] = [
        ("population", f"{count(found.candidates)} candidates, {count(found.finalists)} of them answered every search question"),
        ("by K", ", ".join(f"{option.value}: {percent(option.accuracy)}" for option in found.by_k)),
        ("chosen", f"K = {found.K}, {found.way.members} of {sigma_words(found.way.sigma)}, {found.way.vote} vote"),
        ("members", f"candidates {members}"),
        ("spent", f"{count(found.tokens)} tokens"),
    ]
    yield from fact_lines(facts)
