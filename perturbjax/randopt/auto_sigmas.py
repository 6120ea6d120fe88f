"""``--sigmas auto``: the sigmas of a search by the rule of ``inference.calibration``, chosen once and kept for good."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from perturbjax.cluster import broadcast_json, on_main
from perturbjax.errors import InputError
from perturbjax.inference.calibration import Calibration, calibrate, expected_steps
from perturbjax.inference.next_token import NextToken
from perturbjax.noise import Noise
from perturbjax.pretrained import Model
from perturbjax.randopt.config import AUTO, Config
from perturbjax.records import from_json, to_json
from perturbjax.runs.machine import make_mesh
from perturbjax.runs.rundir import RunDirectory

if TYPE_CHECKING:
    from perturbjax.randopt.setup import Questions

PROMPTS = 64
"""Examples of the search split whose prompts are read, at most. No answer is."""
CANDIDATES = 4
"""Of each sigma."""


def keep_sigmas(config: Config) -> Config:
    """The settings of a run that is to be resumed, with the sigmas that it chose when it began; any other settings as they are.

    Raises:
        InputError: the run was begun with given sigmas.
    """
    out = config.run.out
    if config.search.sigmas != AUTO or out is None or not config.run.resume:
        return config

    def on_process_0() -> list[float] | None:
        directory = RunDirectory(out)
        if not directory.config.is_file():
            return None
        record = directory.read_config()
        sigmas = record["identity"].get("sigmas", [])
        if "calibration" not in record:
            given = ",".join(map(str, sigmas)) or "none"
            raise InputError(f"`resume`: `sigmas` auto, the run has {given} (in {out}); use the run's own settings, or give another `out`")
        return sigmas

    kept = on_main(on_process_0)
    return config if kept is None else with_sigmas(config, tuple(kept))


def choose_sigmas(config: Config, questions: "Questions", model: Model, noise: Noise, note: Callable[[str], None]) -> Calibration:
    """On prompts of the search split. All processes of a run call it together and get the same."""
    examples = questions.splits.search[:PROMPTS]
    measured = NextToken(model, questions.task, examples, questions.template, make_mesh(config.machine), CANDIDATES)
    steps = expected_steps(noise)
    found = calibrate(measured, noise, CANDIDATES, config.search.seed, lambda done: note(f"calibrating: {done} of {steps} sigmas"))
    found = from_json(Calibration, broadcast_json(to_json(found)), "calibration")
    note(calibration_words(found))
    return found


def with_sigmas(config: Config, sigmas: tuple[float, ...]) -> Config:
    """The settings with these sigmas."""
    return replace(config, search=replace(config.search, sigmas=sigmas))


def calibration_words(found: Calibration) -> str:
    """How the sigmas were chosen, in a sentence."""
    sigmas, reference = ", ".join(f"{sigma:g}" for sigma in found.sigmas), found.reference
    return (
        f"sigmas {sigmas}: the first changes the next token as isotropic noise of {reference.sigma:g} does (KL {reference.kl:.1e} nats, "
        f"hidden state {100 * reference.hidden:.1f} %), the literature's best on Qwen2.5 1.5B to 7B; whether it is best here was not known"
    )
