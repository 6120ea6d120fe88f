"""What steering a pretraining (``vpretrain``) would need on chips that are not here, beside plain pretraining of the same model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from perturbjax import sharding
from perturbjax.bench.plan import Chip, Plan, device_bytes, packed_rows
from perturbjax.bench.plan_lines import Say, collective_lines, memory_line, size
from perturbjax.train import Training
from perturbjax.train.optimizer import learning_rates, make_optimizer
from perturbjax.train.placement import BATCH
from perturbjax.train.step import make_step
from perturbjax.vpretrain.designer import TopKDesigner
from perturbjax.vpretrain.steering import Steering, designer_auxiliary
from perturbjax.vpretrain.text import Designed, Learner, TextTask, designed_loss
from perturbjax.vpretrain.value import make_subset

SUBSET_LAYERS, EVERY = 2, 8
"""The paper's: the value looks at the last layers, every r-th step updates the designer."""


def steering(plan: Plan, rows: int, tokens: int, queries: int, feedback_rows: int) -> dict[str, Any]:
    """The compiled programs: the ``plain`` step, the ``steered`` step on a designer's targets, and the ``update`` of the designer before
    every r-th step. The paper's designer (256 wide, 6 layers, 64 candidates); layers are computed again.

    Args:
        plan: of the learner, all of whose parameters are trained.
        rows, tokens, queries: of a step, as for ``Plan.training``.
        feedback_rows: of an update.
    """
    config = plan.parts[""]
    learner, designer = Learner(config, jnp.bfloat16, remat=True, mesh=plan.mesh), TopKDesigner(config.vocab_size)
    optimizer = make_optimizer(Training(), 1000)
    state, shardings = plan.train_state(config, optimizer)
    task = TextTask(learner, designer, make_subset(state.params, SUBSET_LAYERS), {"feedback": 1.0})
    rates = learning_rates(Training(steps=1000), 1000)
    # A designer is small enough to be made here; everything of the learner is shapes.
    settings, dims = Steering(every=EVERY, probe=False), designer.dims(plan.mesh.shape[sharding.MODEL])
    auxiliary = designer_auxiliary(task, settings, designer.init(0), lambda step: {}, rates, dims=dims)
    beside = plan.placed(auxiliary.state, auxiliary.specs)
    its = jax.tree.map(lambda leaf: leaf.sharding, beside)
    batch, feedback = (plan.placed(packed_rows(count, tokens, queries), BATCH) for count in (rows, feedback_rows))
    designed = make_step(designed_loss(learner, designer.candidates, Designed(designer)), optimizer)

    def compiled(fn: Callable[..., Any], donated: int, results: Any, *given: Any) -> Any:
        return jax.jit(fn, donate_argnums=donated, out_shardings=results).lower(*given).compile()

    step = jax.ShapeDtypeStruct((), np.int32)
    return {
        "plain": compiled(make_step(learner.plain_loss(), optimizer), 0, (shardings, None), state, None, batch),
        "steered": compiled(designed, 0, (shardings, None), state, (None, beside), batch),
        "update": compiled(auxiliary.update, 0, (its, None), beside, state, None, batch, {"feedback": feedback}, step),
    }


def steering_lines(plan: Plan, chip: Chip, rows: int, tokens: int, say: Say) -> None:
    """Bytes and collectives of the three programs, and what steering adds to the plain step."""
    groups = plan.mesh.shape[sharding.DATA]
    what = f"{groups * rows} rows of {tokens} tokens a step, half of them learned, {groups} rows of feedback; layers computed again"
    say(f"\nSTEERING, {what}")
    programs = steering(plan, groups * rows, tokens, tokens // 2, groups)
    titles = {"plain": "plain step", "steered": "step on designed targets", "update": f"update of the designer, every {EVERY} steps"}
    moved = {}
    for name, title in titles.items():
        say(memory_line(programs[name], title))
        moved[name] = sum(one.nbytes * one.times for one in collective_lines(plan, programs[name], say))
    plain, most = device_bytes(programs["plain"]), max(device_bytes(program) for program in programs.values())
    fits = "fits" if most <= chip.hbm else "does not fit"
    say(f"  steered / plain: memory {most / plain:.3f} ({size(most)} of {size(chip.hbm)} a device: it {fits});")
    mean = moved["steered"] + moved["update"] / EVERY
    say(f"  bytes of collectives a step {mean / max(1, moved['plain']):.3f} ({size(mean)}), the update's shared out over {EVERY} steps")
