"""What could mislead a reader of this very run."""

from collections.abc import Iterator

from perturbjax.report.words import count
from perturbjax.vpretrain.config import Config
from perturbjax.vpretrain.headline import basis, first_set
from perturbjax.vpretrain.results import Results

FEW_ROWS = 200
WEAK = 0.3
"""Correlation of predicted and realized below which the page says that values said little."""


def caveats(results: Results, config: Config) -> list[str]:
    """Sentences, those about the effect first."""
    return list(_sentences(results, config))


def _sentences(results: Results, config: Config) -> Iterator[str]:
    own = results.own
    _, figures = first_set(own)
    compared, _ = basis(figures)
    if figures.n < FEW_ROWS and compared is not None:
        low, high = compared.difference_interval
        yield f"{count(figures.n)} test rows are few: the difference is known to about ±{(high - low) / 2:.3f} nats."
    yield "The intervals are for one training with one seed. Another seed trains another designer; its variation is not in them."
    if results.arm("plain") is None:
        yield "Plain pretraining was not trained, so nothing tells the designer's part from that of more pretraining: add it to controls."
    if results.arm("fine_tuning") is None:
        yield "Fine-tuning on the feedback was not trained, which is the plainest use of it: add fine_tuning to controls."
    if own.mode == "value" and results.arm("random") is None:
        yield "No designer followed a random direction: how much of the effect is soft targets of any kind was not measured."
    yield "The designer sees the true next token, and the arms took equal steps and batches, not equal time: the seconds stand beside each."
    if own.r is not None and own.r < WEAK:
        yield f"Predicted and realized falls of the feedback loss correlate by {own.r:.2f} only: the values said little about the steps."
    if own.skipped:
        yield f"{count(own.skipped)} updates of the designer were skipped because their value was not finite."
    for pair, found in results.trained.overlaps.items():
        if found.normalized:
            yield f"{pair.replace('+', ' and ')} share {count(found.normalized)} of {count(found.rows)} rows, which was allowed."
    if config.data.general is None:
        yield "No text of another domain was measured: what the training cost elsewhere is unknown. --general takes a file of it."
