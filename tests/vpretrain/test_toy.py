"""The toy of ``scripts/recipes/vpretrain`` at a small size: feedback on a quarter of the contexts moves the learner on the others."""

from recipes.vpretrain.toy import ARMS, PLAIN, VALUE, Toy, run_arm

SMALL = Toy(layers=1, steps=400)


def test_designed_targets_serve_contexts_that_have_no_feedback():
    (plain, _), (value, fitted) = (run_arm(SMALL, ARMS[name], 100) for name in (PLAIN, VALUE))
    print(plain, value)
    assert plain.loss - value.loss >= 0.10
    assert value.accuracy - plain.accuracy >= 0.2
    assert value.r is not None and value.r >= 0.6
    assert 0 < value.alpha <= SMALL.alpha_max
    assert int(fitted.auxiliary["updates"]) == SMALL.steps // SMALL.every and int(fitted.auxiliary["skipped"]) == 0
