"""A sigma for a model, a noise and the prompts of a task, without labels: the rule and its limits are in ``inference.calibration``."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from perturbjax.errors import InputError
from perturbjax.models.noise_groups import decoder_noise
from perturbjax.noise import Rule
from perturbjax.noise.distributions import DistributionName
from perturbjax.noise.spec import Scale
from perturbjax.runs.config import Base, Machine, check_choices, check_positive, check_seed, check_text
from perturbjax.runs.console import SILENT, Progress

if TYPE_CHECKING:
    from perturbjax.inference.calibration import Calibration


@dataclass(frozen=True)
class Config:
    """What a calibration measures. Field names are the flags of ``perturbjax calibrate``."""

    base: Base = field(default_factory=Base)
    task: str = "sst2"
    """As for randopt; its prompts are read, its answers are not."""
    template: str | None = None
    """Prompt template, by name; the task's first when left out."""
    noise: DistributionName = "gaussian"
    """As for randopt."""
    rank: int | None = None
    """As for randopt."""
    scale: Scale = "absolute"
    """As for randopt; with modular, sigma is R, the step of the whole model in the modular norm."""
    rules: tuple[Rule, ...] = ()
    """As for randopt."""
    prompts: int = 64
    """Examples whose prompts are read: the last of the seed's order, which a search asks last."""
    candidates: int = 4
    """Candidates of each sigma."""
    seed: int = 0
    """Of the candidates, which are none of a search's, and of the order of the examples."""
    machine: Machine = field(default_factory=Machine)

    def validate(self) -> None:
        """Raise ``InputError`` for settings that cannot be used."""
        self.base.validate()
        self.machine.validate()
        check_text("task", self.task)
        check_choices(self)
        check_positive(self, "prompts", "candidates", "rank")
        if self.candidates < 2:
            raise InputError(f"`candidates` {self.candidates}: at least 2 are required, or there is no interval")
        check_seed(self.seed)


def calibrate(config: Config, progress: Progress = SILENT) -> "Calibration":
    """Chooses a sigma; writes nothing.

    Args:
        config: the settings.
        progress: told what goes on; ``runs.console.Console()`` prints it.

    Raises:
        InputError: the settings, or what they name, cannot be used.

    >>> from perturbjax import studies
    >>> found = studies.calibrate(studies.Config(task="boolq", scale="modular"))  # doctest: +SKIP
    >>> found.choice, found.flat, found.sigmas  # doctest: +SKIP
    """
    config.validate()
    # They need Flax, which reading settings does without.
    from perturbjax.inference.calibration import calibrate as choose
    from perturbjax.inference.calibration import expected_steps
    from perturbjax.inference.next_token import NextToken
    from perturbjax.noise.spec import check_noise
    from perturbjax.pretrained import load_model
    from perturbjax.runs.machine import make_mesh, resolve_dtype, shares_a_model
    from perturbjax.tasks import load_task, template_by_name
    from perturbjax.tasks.splits import in_order

    task = load_task(config.task)
    template = task.templates[0] if config.template is None else template_by_name(task, config.template)
    examples = in_order(task.examples(), config.seed)
    if len(examples) < config.prompts:
        raise InputError(f"`prompts` {config.prompts}: the task has {len(examples)} different questions; lower it")
    noise = decoder_noise(config.noise, config.rank, config.scale, config.rules)
    model = load_model(config.base.model, resolve_dtype(config.base.dtype), stored=shares_a_model(config.machine))
    progress.note(f"model {model.name}: {model.source}")
    progress.note(f"task {task.name}: {task.source}")
    for rule in check_noise(model.params, noise).unused_rules:
        progress.note(f"perturbjax: warning: noise rule {rule.pattern!r} matches no parameter")
    measured = NextToken(model, task, examples[-config.prompts :], template, make_mesh(config.machine), config.candidates)
    with progress.bar("calibrating", expected_steps(noise), unit="sigma") as bar:
        return choose(measured, noise, config.candidates, config.seed, bar.update)
