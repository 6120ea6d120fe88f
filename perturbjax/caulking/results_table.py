"""results.json as a plain table for the terminal."""

from perturbjax.caulking.headline import curve_name, headline
from perturbjax.caulking.results import Results
from perturbjax.report.words import count, fact_lines, percent, shorten

_LABEL = 36


def results_table(results: Results) -> str:
    """Accuracies of every curve, the examples that each accuracy takes, and what it cost."""
    samples = [point.samples for point in results.curves[0].points]
    lines = [f"{'right on the test questions':<{_LABEL}}" + "".join(f"{f'n = {n}':>11}" for n in samples)]
    lines.append("-" * len(lines[0]))
    for curve in results.curves:
        lines.append(
            f"{shorten(curve_name(curve), _LABEL - 1):<{_LABEL}}" + "".join(f"{percent(1 - point.error):>11}" for point in curve.points)
        )
    lines += [
        "",
        f"{'examples that an accuracy takes':<{_LABEL}}" + "".join(f"{percent(n.accuracy):>22}" for n in results.curves[0].needed),
    ]
    lines.append("-" * len(lines[-1]))
    for curve in results.curves:
        lines.append(f"{shorten(curve_name(curve), _LABEL - 1):<{_LABEL}}" + "".join(f"{needed.words:>22}" for needed in curve.needed))
    alone = ", ".join(f"{percent(1 - base.error)}{f' (moved by {base.sigma:g})' if base.sigma else ''}" for base in results.bases)
    facts = [
        ("base alone", f"{alone} right of {count(results.n)}"),
        ("task", f"{results.task.name}, prompt {results.template}; examples drawn from {count(results.pool)}"),
        ("cells", f"{count(results.cells)}, {results.seeds} seeds; {count(results.diverged)} diverged"),
        ("trained", ", ".join(f"{name} {count(number)}" for name, number in results.trained.items()) + " parameters"),
        ("cost", f"{count(results.tokens)} tokens of training, {count(results.test_tokens)} of measuring, {count(results.seconds)} s"),
    ]
    facts += [(f"slope, {each.method}", f"{each.slope:.2f} [{each.interval[0]:.2f}, {each.interval[1]:.2f}]") for each in results.slopes]
    return "\n".join([headline(results).title, "", *lines, "", *fact_lines(facts)])
