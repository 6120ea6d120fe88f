"""What could mislead a reader of this very run."""

from collections.abc import Iterator

from perturbjax.report.words import count
from perturbjax.vpretrain.config import Config
from perturbjax.vpretrain.headline import NAMES, WITH_DESIGNER, basis, first_set
from perturbjax.vpretrain.results import Results

FEW_ROWS = 200
WEAK = 0.3
"""Correlation of predicted and realized below which the page says that values said little."""
FEW_UPDATES = 10
"""Below so many, a correlation says nothing."""


def caveats(results: Results, config: Config) -> list[str]:
    """Sentences, those about the effect first."""
    return list(_sentences(results, config))


def _sentences(results: Results, config: Config) -> Iterator[str]:
    own = results.own
    name, figures = first_set(own)
    compared, _ = basis(figures)
    if figures.n < FEW_ROWS and compared is not None:
        low, high = compared.difference_interval
        yield f"{count(figures.n)} test rows are few: the difference is known to about ±{(high - low) / 2:.3f} nats."
    another = "trains another designer" if own.mode in WITH_DESIGNER else "takes the rows in another order"
    yield f"The intervals are for one training with one seed. Another seed {another}; its variation is not in them."
    if results.diverged:
        names = ", ".join(NAMES[mode] for mode in results.diverged)
        yield f"Not in the table, because the loss was not finite: {names}. A lower learning rate would measure them too."
    if results.arm("plain") is None:
        yield "Plain pretraining was not trained: --resume --controls plain tells what more pretraining alone would have done."
    if results.arm("fine_tuning") is None:
        yield "Fine-tuning on the feedback was not trained, which is the plainest use of it: --resume --controls fine_tuning does that."
    if own.mode == "value":
        yield from _against_random(results, name)
    yield "The arms took equal steps and batches, not equal time: the time stands beside each."
    if own.mode in WITH_DESIGNER:
        yield "The designer sees the true next token, which the model does not."
    if own.r is not None and own.updates < FEW_UPDATES:
        yield f"The correlation of predicted and realized falls is of at most {own.updates} updates, too few to tell."
    elif own.r is not None and own.r < WEAK:
        yield f"Predicted and realized falls of the feedback loss correlate by {own.r:.2f} only: the values said little about the steps."
    if own.skipped:
        yield f"{count(own.skipped)} updates of the designer were skipped because their value was not finite."
    for pair, found in results.trained.overlaps.items():
        if found.normalized:
            yield f"{pair.replace('+', ' and ')} share {count(found.normalized)} of {count(found.rows)} rows, which was allowed."
    if config.data.general is None:
        yield "No text of another domain was measured: what the training cost elsewhere is unknown. --general takes a file of it."


def _against_random(results: Results, name: str) -> Iterator[str]:
    """Whether the feedback's direction was needed."""
    random = results.arm("random")
    if random is None:
        yield "No designer followed a random direction: how much of the effect is soft targets of any kind was not measured."
    elif (against := random.sets[name].own_against) is not None and against.verdict != "helped":
        what = "A designer that follows a random direction did as well, within chance, or better"
        yield f"{what}: whatever the effect is, it is not shown to come from the feedback."
