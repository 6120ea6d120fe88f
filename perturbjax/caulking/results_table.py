"""results.json as a plain table for the terminal."""

from perturbjax.caulking.headline import curve_name, headline
from perturbjax.caulking.results import Results
from perturbjax.report.words import count, fact_lines, percent, plural

_LABEL = 36
_NEEDED = 28


def results_table(results: Results) -> str:
    """Accuracies of every curve, the examples that each accuracy takes, and what it cost."""
    samples = [point.samples for point in results.curves[0].points]
    label = max(_LABEL, *(len(curve_name(curve)) + 1 for curve in results.curves))
    lines = [f"{'right on the test questions':<{label}}" + "".join(f"{f'n = {n}':>11}" for n in samples)]
    lines.append("-" * len(lines[0]))
    for curve in results.curves:
        lines.append(f"{curve_name(curve):<{label}}" + "".join(f"{percent(1 - point.error):>11}" for point in curve.points))
    lines += [
        "",
        f"{'examples that an accuracy takes':<{label}}" + "".join(f"{percent(n.accuracy):>{_NEEDED}}" for n in results.curves[0].needed),
    ]
    lines.append("-" * len(lines[-1]))
    for curve in results.curves:
        lines.append(f"{curve_name(curve):<{label}}" + "".join(f"{needed.words:>{_NEEDED}}" for needed in curve.needed))
    alone = ", ".join(f"{percent(1 - base.error)}{f' (moved by {base.sigma:g})' if base.sigma else ''}" for base in results.bases)
    facts = [
        ("base alone", f"{alone} right of {count(results.n)}"),
        ("task", f"{results.task.name}, prompt {results.template}; examples drawn from {count(results.pool)}"),
        ("cells", f"{count(results.cells)}, {plural(results.seeds, 'seed')}; {count(results.diverged)} diverged"),
        ("trained", ", ".join(f"{name} {count(number)}" for name, number in results.trained.items()) + " parameters"),
        ("cost", f"{count(results.tokens)} tokens of training, {count(results.test_tokens)} of measuring, {count(results.seconds)} s"),
    ]
    facts += [
        (
            f"slope, {each.method}",
            f"{each.slope:.2f} [{each.interval[0]:.2f}, {each.interval[1]:.2f}] of log examples for {percent(each.accuracy)} against log "
            f"error of the base, {each.bases} bases",
        )
        for each in results.slopes
    ]
    return "\n".join([headline(results).title, "", *lines, "", *fact_lines(facts)])
