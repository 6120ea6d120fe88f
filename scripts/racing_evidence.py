"""What racing saves and what it loses, replayed on recorded score matrices and on made ones. Nothing is scored here.

    python scripts/racing_record.py --task sst2 --out runs/racing/sst2-search.npz          # hours of a CPU, resumable
    python scripts/racing_evidence.py --records runs/racing --wanted                       # writes runs/racing/sst2-members.json
    python scripts/racing_record.py --task sst2 --split test --members runs/racing/sst2-members.json --out runs/racing/sst2-test.npz
    python scripts/racing_evidence.py --records runs/racing --out runs/racing/evidence
    python scripts/racing_evidence.py --records tests/data                                 # without recording anything: two that are kept

For every rule and several of its parameters, against full evaluation: tokens, recall of the best K, mean full score of the chosen K, in
the order of the run's seed and over random orders of the examples (mean, and the worst tenth); then the votes of the chosen K on the test
split, paired with those of the full K. Prints tables, writes a PNG a record.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from inputs import at_least, directory, exit_code
from racing_matrices import equals, far_apart, relatives

from perturbjax.randopt.racing import Race
from perturbjax.randopt.voting import vote_winners
from perturbjax.report.accounting import paired_bootstrap, sign_test
from perturbjax.scoring import top_k

ORDERS = 200
SYNTHETIC = {"far apart": (far_apart, 0), "relatives": (relatives, 16), "all equal": (equals, 8)}


@dataclass(frozen=True)
class Record:
    """A full score matrix and what its parts cost: ``own`` tokens of each example (D,), and the prefix that a slice runs besides."""

    name: str
    scores: np.ndarray
    prefix: int
    own: np.ndarray
    test_answers: np.ndarray | None = None
    gold: np.ndarray | None = None

    def tokens(self, columns: slice | np.ndarray, order: np.ndarray) -> int:
        """Of one candidate on a slice, the prefix counted once."""
        return int(self.own[order[columns]].sum() + self.prefix)


@dataclass(frozen=True)
class Outcome:
    """One race on one order: the chosen K, best first, the share of the tokens, entrants by round, and of the scores that differ from what
    most candidates have on that example the share that was taken for another."""

    members: np.ndarray
    share: float
    entrants: tuple[int, ...]
    lost: float


def races(size: int, examples: int, k: int) -> Iterator[tuple[str, Race]]:
    """The rules, the defaults first."""
    yield "off", Race("off", size, examples, k)
    yield "halving", Race("halving", size, examples, k)
    yield "bounds", Race("bounds", size, examples, k)
    yield "dead", Race("dead", size, examples, k)
    for screen in (8, 16, 64):
        yield f"dead, screen {screen}", Race("dead", size, examples, k, screen=screen)
    for rounds in (2, 3, 5):
        yield f"halving, {rounds} rounds", Race("halving", size, examples, k, rounds=rounds, smallest=8)
    for finalists in (1.0, 1.5, 3.0, 4.0):
        yield f"halving, {finalists:g} K finalists", Race("halving", size, examples, k, finalists=finalists)
    for error in (0.01, 0.05, 0.2, 0.4):
        yield f"bounds, error {error:g}", Race("bounds", size, examples, k, error=error)


def replay(race: Race, record: Record, order: np.ndarray, first: np.ndarray | None = None) -> Outcome:
    """Run a race on the recorded scores, the examples in the given order, and the candidates too where there is one of them."""
    first = np.arange(len(record.scores)) if first is None else first
    full = record.scores[np.ix_(first, order)]
    scores = np.full(full.shape, np.nan, np.float32)
    spent, entered = 0, []
    for number in range(race.parts):
        entrants, columns, _ = race.part(scores, number)
        scores[np.ix_(entrants, columns)] = full[np.ix_(entrants, columns)]
        spent += len(entrants) * record.tokens(columns, order)
        entered.append(len(entrants))
    last, ranked = race.survivors(scores, len(race.ends) - 1), race.filled(scores)
    members = last[top_k(ranked[last], race.top_k)]
    usual = np.median(full, axis=0)
    lost = ((ranked != full) & (full != usual) & ~np.isnan(ranked)).sum() / max(1, (full != usual).sum())
    return Outcome(first[members], spent / (len(full) * record.tokens(slice(None), order)), tuple(entered), float(lost))


def compare(race: Race, record: Record, orders: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Share of the tokens, recall of the full top K and difference of mean full scores in points, for each order of the examples (in
    ``dead`` of the candidates too)."""
    best = top_k(record.scores, race.top_k)
    means = record.scores.mean(axis=1, dtype=np.float64)
    rng, size = np.random.default_rng(1), len(record.scores)
    # Of dead it matters who is asked first, of the other rules it does not.
    shuffled = race.rule == "dead" and len(orders) > 1
    outcomes = [replay(race, record, order, rng.permutation(size) if shuffled else None) for order in orders]
    recall = [np.isin(best, outcome.members).mean() for outcome in outcomes]
    points = [100 * (means[outcome.members].mean() - means[best].mean()) for outcome in outcomes]
    return np.array([outcome.share for outcome in outcomes]), np.array(recall), np.array(points)


def votes(record: Record, members: np.ndarray) -> np.ndarray:
    """(B,) right or wrong of the members' majority on the test split."""
    assert record.test_answers is not None and record.gold is not None
    answers = [[None if a < 0 else str(a) for a in column] for column in record.test_answers[members].T]
    winners = vote_winners(answers)[:, -1]
    voted = record.test_answers[members[np.maximum(winners, 0)], np.arange(len(winners))]
    return ((voted == record.gold) & (winners >= 0)).astype(np.float64)


def load(folder: Path) -> list[Record]:
    """What racing_record.py wrote, and the two matrices of right and wrong that the tests keep, packed."""
    records = []
    for path in sorted(folder.glob("racing_*.npz")):
        with np.load(path) as saved:
            scores = np.unpackbits(saved["bits"], axis=1)[:, : len(saved["own_tokens"])].astype(np.float32)
            records.append(Record(path.stem.removeprefix("racing_"), scores, int(saved["prefix_tokens"]), saved["own_tokens"].astype(int)))
    for path in sorted(folder.glob("*-search.npz")):
        with np.load(path) as saved:
            missing = int(np.isnan(saved["scores"]).any(axis=1).sum())
            if missing:
                print(f"{path.name}: {missing} candidates are not recorded yet; left out")
                continue
            name = path.name.removesuffix("-search.npz")
            record = Record(name, saved["scores"], int(saved["prefix_tokens"]), saved["own_tokens"])
        test = folder / f"{name}-test.npz"
        if test.exists():
            with np.load(test) as saved:
                answers = np.where(np.isnan(saved["scores"]), -2, saved["answers"])
                record = Record(**{**vars(record), "test_answers": answers, "gold": saved["gold"]})
        records.append(record)
    return records


def made(name: str, size: int, examples: int) -> Record:
    make, changes = SYNTHETIC[name]
    scores = make(np.random.default_rng(0), size, examples, changes)
    return Record(f"made: {name}", scores, 0, np.full(examples, 40))


def table(record: Record, k: int) -> dict[str, tuple[Race, np.ndarray, np.ndarray, np.ndarray]]:
    """Print one record's table; returns it for the plot."""
    size, examples = record.scores.shape
    seed_order = np.arange(examples)
    rng = np.random.default_rng(0)
    orders = [rng.permutation(examples) for _ in range(ORDERS)]
    means = record.scores.mean(axis=1, dtype=np.float64)
    best = means[top_k(record.scores, k)]
    print(f"\n{record.name}: N = {size}, D = {examples}, K = {k}; mean score of all {100 * means.mean():.2f} %")
    ties = f"the last has {100 * best[-1]:.2f} %, as have {int((means == best[-1]).sum())} candidates"
    print(f"full evaluation's best {k}: mean score {100 * best.mean():.2f} %; {ties}")
    print(f"{'':26s} {'in the order of the seed':^31s} | {f'over {ORDERS} random orders: mean (worst tenth)':^46s}")
    print(f"{'rule':26s} {'tokens':>7s} {'recall':>7s} {'points':>7s} {'entrants':>7s} | {'tokens':>7s} {'recall':>14s} {'points':>16s}")
    rows = {}
    for name, race in races(size, examples, k):
        outcome = replay(race, record, seed_order)
        (share,), (recall,), (points,) = compare(race, record, [seed_order])
        shares, recalls, losses = compare(race, record, orders)
        entrants = ">".join(map(str, outcome.entrants)) + (f", {outcome.lost:.1%} lost" if race.rule == "dead" else "")
        print(
            f"{name:26s} {share:7.1%} {recall:7.2f} {points:+7.2f} {entrants} | {shares.mean():7.1%} "
            f"{recalls.mean():7.2f} ({np.quantile(recalls, 0.1):.2f}) {losses.mean():+8.2f} ({np.quantile(losses, 0.1):+.2f})"
        )
        rows[name] = (race, shares, recalls, losses)
    return rows


def vote_table(record: Record, k: int) -> None:
    """Print the test accuracy of the votes of what each rule chose in the order of the seed."""
    size, examples = record.scores.shape
    assert record.test_answers is not None
    full = votes(record, top_k(record.scores, k))
    print(f"\n{record.name}: vote of the chosen {k} on {len(full)} test questions, paired with the vote of full evaluation's best {k}")
    for name, race in races(size, examples, k):
        members = replay(race, record, np.arange(examples)).members
        if (record.test_answers[members] == -2).any():
            continue  # only the members that the three rules choose as they are by default are recorded there
        mine = votes(record, members)
        low, high = paired_bootstrap(mine, full, 0)
        gained, lost, p = sign_test(mine, full)
        print(
            f"{name:26s} {mine.mean():6.1%}   {100 * (mine.mean() - full.mean()):+5.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]   "
            f"+{gained}/-{lost}, p = {p:.2f}"
        )


def plot(path: Path, record: Record, rows: dict) -> None:
    """Recall and score of the chosen against tokens, a point a rule; and the survivors of the two default races."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    colours = {"off": "#222222", "halving": "#0072B2", "bounds": "#D55E00", "dead": "#009E73"}
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    survivors, recall, points = figure.subplots(1, 3)
    for name, (race, shares, recalls, losses) in rows.items():
        style = {"color": colours[race.rule], "markersize": 9 if name == race.rule else 5, "marker": "o" if name == race.rule else "."}
        label = name if name == race.rule else None
        recall.plot(shares.mean(), recalls.mean(), linestyle="none", label=label, **style)
        points.plot(shares.mean(), losses.mean(), linestyle="none", **style)
        points.plot([shares.mean()] * 2, np.quantile(losses, [0.1, 0.9]), color=style["color"], linewidth=0.8, alpha=0.6)
        if name == race.rule and race.parts == len(race.ends):
            entrants = (*replay(race, record, np.arange(record.scores.shape[1])).entrants,)
            survivors.step((0, *race.ends), (entrants[0], *entrants), where="pre", color=style["color"], linewidth=2)
    points.axhspan(-0.5, 0, xmax=0.35 / 1.05, color="#009E73", alpha=0.15, linewidth=0)
    survivors.set(xlabel="search questions asked so far", ylabel="candidates in the race", ylim=(0, None), title=record.name)
    recall.set(xlabel="tokens, of full evaluation", ylabel=f"share of the full best {rows['off'][0].top_k} kept", xlim=(0, 1.05))
    points.set(xlabel="tokens, of full evaluation", ylabel="score of the chosen: points lost", xlim=(0, 1.05))
    recall.legend(frameon=False, loc="lower right")
    for axis in (recall, points):
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.grid(color="#e4e4e4", linewidth=0.8)
        axis.set_axisbelow(True)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=directory, required=True, help="directory of <task>-search.npz and <task>-test.npz")
    parser.add_argument("--top-k", type=at_least(1), default=16)
    parser.add_argument("--wanted", action="store_true", help="only write <task>-members.json: whose test answers the votes need")
    parser.add_argument("--out", type=Path, help="directory for the PNGs")
    options = parser.parse_args()
    records = load(options.records)
    if not records:
        parser.error(f"--records {options.records}: no <task>-search.npz there; racing_record.py makes them, tests/data has two")
    for record in records:
        if options.wanted:
            size, examples = record.scores.shape
            defaults = [race for name, race in races(size, examples, options.top_k) if name == race.rule]
            chosen = [replay(race, record, np.arange(examples)).members for race in defaults]
            members = np.unique(np.concatenate(chosen)).tolist()
            (options.records / f"{record.name}-members.json").write_text(json.dumps(members))
            print(f"{record.name}: {len(members)} candidates")
            continue
        rows = table(record, options.top_k)
        if record.test_answers is not None:
            vote_table(record, options.top_k)
        if options.out:
            plot(options.out / f"racing-{record.name}.png", record, rows)
    if not options.wanted:
        for name in SYNTHETIC:
            table(made(name, 256, 128), options.top_k)


if __name__ == "__main__":
    sys.exit(exit_code(main))
