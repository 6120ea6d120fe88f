"""From what was measured of each arm to its figures: paired differences to step 0 and to plain pretraining."""

from collections.abc import Sequence

import numpy as np

from perturbjax.report import compared_entry, comparison, entry
from perturbjax.tree import derived_seed
from perturbjax.vpretrain.results import START, ArmFigures, Measured, SetFigures, correlation, probe_pairs


def arm_figures(arms: Sequence[Measured], own: str, seed: int) -> tuple[ArmFigures, ...]:
    """Figures of step 0 and the arms, whose test rows are paired.

    Args:
        arms: step 0 first.
        own: mode of the arm that the run is about.
        seed: of the run; the bootstrap's comes from it.
    """
    by_mode = {arm.mode: arm for arm in arms}
    return tuple(_figures(arm, by_mode[START], by_mode.get("plain"), by_mode[own], derived_seed(seed, "bootstrap")) for arm in arms)


def _figures(arm: Measured, start: Measured, plain: Measured | None, own: Measured, seed: int) -> ArmFigures:
    sets = {}
    if arm is plain:
        plain = None
    control = arm.mode not in (START, "plain", own.mode)
    for name, losses in arm.losses.items():

        def lower(other: Measured | None, name: str = name, losses: tuple[float, ...] = losses):
            return None if other is None or other is arm else comparison(-np.asarray(losses), -np.asarray(other.losses[name]), seed)

        accuracy = against = None
        if name in arm.scores:
            scores = np.asarray(arm.scores[name])
            found = entry(scores, np.asarray(arm.lenient[name]), arm.tokens[name])
            accuracy = compared_entry(found, scores, np.asarray(start.scores[name]), seed)
            against = None if plain is None or arm is start else comparison(scores, np.asarray(plain.scores[name]), seed)
        mean = float(np.mean(losses))
        beside = comparison(np.asarray(losses), np.asarray(own.losses[name]), seed) if control else None
        sets[name] = SetFigures(len(losses), mean, lower(start), None if arm is start else lower(plain), accuracy, against, beside)
    last = arm.looks[-1] if arm.looks else None
    first = next((update for look in arm.looks for update in look.updates), {})
    return ArmFigures(
        arm.mode,
        sets,
        arm.general,
        last.tokens if last else 0,
        last.seconds if last else 0.0,
        arm.updates,
        arm.skipped,
        correlation(probe_pairs(arm.looks)),
        correlation(probe_pairs(arm.looks, "predicted_alone")),
        last.losses.get("alpha") if last else None,
        last.losses.get("entropy") if last else None,
        last.losses.get("off_true") if last else None,
        first.get("alpha"),
        arm.drift,
    )
