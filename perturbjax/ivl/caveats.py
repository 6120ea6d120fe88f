"""What could mislead a reader of this very run."""

from collections import Counter
from collections.abc import Iterator, Sequence

from perturbjax.ivl.config import RIVALS, Config
from perturbjax.ivl.headline import other_bases
from perturbjax.ivl.results import VALUE_ALONE, Evaluation, Results
from perturbjax.report.words import count, percent

FEW_QUESTIONS = 200
"""Below it the page says how coarse the measurement is, whatever came out."""


def caveats(results: Results, config: Config, evaluations: Sequence[Evaluation]) -> list[str]:
    """Sentences, those about the effect first."""
    return [*_of_the_test(results, config), *_of_the_training(results, config), *_of_the_evaluations(results, evaluations)]


def _of_the_test(results: Results, config: Config) -> Iterator[str]:
    entry, base = results.entries.with_value, results.entries.base
    # Where hardly an answer changed the bootstrap's interval is too narrow; what happens in up to 3/n of all cases may not be seen in n.
    half = 100 * max((entry.difference_interval[1] - entry.difference_interval[0]) / 2, 3 / entry.n)
    if entry.verdict == "no clear effect":
        yield f"With {count(entry.n)} test questions the uncertainty is about ±{half:.1f} points: a smaller effect cannot be seen."
    elif entry.n < FEW_QUESTIONS:
        yield f"{count(entry.n)} test questions are few: the size of the effect is known to about ±{half:.1f} points."
    yield "The intervals are for one training with one seed. Another seed trains another value network; its variation is not in them."
    if (entry.lenient_accuracy, base.lenient_accuracy) != (entry.accuracy, base.accuracy):
        yield (
            "Demonstrations teach a form of answer too. Counted in any recognizable form, the base got "
            f"{percent(base.lenient_accuracy)} and with the value network {percent(entry.lenient_accuracy)} (column “lenient”): the rest "
            "of the difference is form."
        )
    if missing := [RIVALS[name] for name in config.data.rivals if RIVALS[name] not in results.entries.tunings]:
        yield f"Asked for and left out, because the training diverged: {', '.join(missing)}. A lower learning rate might have served it."
    if results.entries.tunings:
        yield (
            "Each rival was trained once, by the settings of the value network's own training (LoRA at a higher learning rate): another "
            "rate or number of steps might suit it better."
        )
    elif not missing:
        yield (
            "The base itself was not fine-tuned on the demonstrations, so nothing here says what that would have reached: perturbjax "
            "evaluate RUN --rivals lora,full does."
        )
    if VALUE_ALONE not in results.entries.systems:
        why = "reads or scales the base's logits"
        if config.value.outputs == "bytes":
            why = "of bytes says which byte a token begins with, and no token"
        yield (
            f"A {config.value.connection} value network {why}, so it cannot be asked alone: that control is missing, and nothing here says "
            "how much of the answers is its own."
        )
    if config.data.task in (None, config.data.demonstrations):
        yield (
            f"Demonstrations and test questions are of one task, {results.task.name}. What the value network does to other tasks was not "
            "measured here."
        )


def _of_the_training(results: Results, config: Config) -> Iterator[str]:
    shown, best, last = results.demonstrations, results.best, results.looks[-1]
    looked = [look for look in results.looks if "loss" in look.validation]
    if config.training.patience:
        early = " Training was stopped early." if results.stopped_early else ""
        yield (
            "The validation demonstrations chose the step whose weights are used, so their cross-entropy there is a little too good. The "
            f"test questions had no part in it.{early}"
        )
    elif looked and (lowest := min(looked, key=lambda look: look.validation["loss"])).step != last.step:
        yield (
            f"The weights are those of the last step. The validation loss was lower at step {lowest.step} "
            f"({lowest.validation['loss']:.3f}, at the end {last.validation['loss']:.3f}): patience would have kept those."
        )
    joined, alone = best.validation.get("cross_entropy"), best.validation.get("base_cross_entropy")
    if joined is not None and alone is not None and joined >= alone:
        yield (
            f"In validation the cross-entropy with the value network ({joined:.3f}) is not below the base's own ({alone:.3f}): what it "
            "learned does not carry over to other demonstrations."
        )
    if results.logits:
        k, worst = results.logits[0].k, max(each.label_error for each in results.logits)
        kept = "in bfloat16" if k is None else f"of the {count(k)} likeliest tokens of each position alone"
        yield (
            f"Training and validation read the base's logits from files, {kept}: the log-probability of a demonstrated token is off by "
            f"up to {worst:.2g} nats there, and so may be the cross-entropies. The test questions were put to the base itself."
        )
    if config.bases.held_out is not None:
        yield (
            f"Validation is measured beside {config.bases.held_out}, which was not trained on: compare each curve with its own base's "
            "line, not with the other curve."
        )
    if shown.too_long:
        yield (
            f"{_demonstrations(shown.too_long)} left out for being longer than a row of {config.training.row_tokens} tokens: long answers "
            "may be underrepresented."
        )
    if shown.asked_in_test:
        yield f"{_demonstrations(shown.asked_in_test)} left out for asking a test question word for word; paraphrases were not looked for."
    if not config.value.penalty:
        yield "The norm had weight 0: nothing kept the value network from learning what only its own base needs."
    if config.value.head == "base":
        yield "The value network began with the base's head: before the first step the joined logits were not the base's."


def _of_the_evaluations(results: Results, evaluations: Sequence[Evaluation]) -> Iterator[str]:
    if not other_bases(results, evaluations):
        yield "No other base was measured. Whether the value network helps others is what perturbjax evaluate RUN --base MODEL tells."
    measured = Counter((each.entries.model, each.task) for each in evaluations)
    if any(times > 1 for times in measured.values()):
        yield "A base was measured more than once on one task, with other settings. The best-looking of several is no evidence by itself."


def _demonstrations(number: int) -> str:
    return f"{count(number)} demonstration{' was' if number == 1 else 's were'}"
