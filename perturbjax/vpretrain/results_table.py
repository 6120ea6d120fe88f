"""results.json as a plain table for the terminal."""

import textwrap

from perturbjax.report.words import WIDTH, count, fact_lines, percent, shorten
from perturbjax.vpretrain.headline import NAMES, WITH_DESIGNER, headline, idleness, labels, nats, nats_range, seconds
from perturbjax.vpretrain.results import Results


def results_table(results: Results) -> str:
    """Step 0 and the arms on each feedback set, then what was trained and what it cost."""
    lines = [textwrap.fill(line, WIDTH) for line in (headline(results).title, idleness(results.own)) if line]
    for name, shown in labels(results.own.sets).items():
        lines += ["", f"{shorten(shown, 40):<44} {'loss':>7}  {'plain - it':>10}  {'95 % interval':<18} {'right':>7}"]
        lines.append("-" * len(lines[-1]))
        for arm in results.arms:
            figures = arm.sets[name]
            against = figures.against_plain
            compared = f"{nats(against.difference):>10}  {nats_range(against):<18}" if against is not None else " " * 30
            right = percent(figures.accuracy.accuracy) if figures.accuracy is not None else ""
            lines.append(f"{NAMES[arm.mode]:<44} {figures.loss:7.3f}  {compared} {right:>7}".rstrip())
    own, trained = results.own, results.trained
    plain = results.arm("plain")
    took = seconds(own.seconds) + (f" (plain pretraining {seconds(plain.seconds)})" if plain is not None and plain is not own else "")
    facts = [
        ("corpus", f"{trained.corpus}: {count(trained.rows)} rows, {count(trained.tokens)} tokens"),
        ("training", f"{trained.steps} steps, {count(own.tokens)} tokens, {took}"),
    ]
    if own.updates or own.skipped:
        facts.append(("value", f"looks at {count(trained.subset)} of {count(trained.parameters)} parameters"))
        of = f"{count(trained.designer)} parameters, " if own.mode in WITH_DESIGNER else "none; "
        facts.append(("designer", f"{of}{own.updates} updates, {own.skipped} skipped"))
    if own.r is not None:
        alone = f"; {own.r_alone:.2f} without momentum" if own.r_alone is not None else ""
        facts.append(("probe", f"r = {own.r:.2f} of predicted and realized falls of the feedback loss{alone}"))
    if own.alpha is not None:
        facts.append(("targets", f"mean alpha {own.alpha:.2g}, entropy of r {own.entropy:.2f} nats"))
    if own.general is not None and (start := results.arms[0].general) is not None:
        facts.append(("other text", f"loss {own.general:.3f}, at step 0 {start:.3f}"))
    if results.diverged:
        facts.append(("diverged", ", ".join(NAMES[mode] for mode in results.diverged) + ": not in the table"))
    return "\n".join([*lines, "", *fact_lines(facts)])
