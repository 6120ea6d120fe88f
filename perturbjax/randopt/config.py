"""What a search is: nested frozen dataclasses, checked before anything is loaded or written.

Field names are the flags of ``perturbjax randopt`` with dashes; the strings below the fields are their help.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from perturbjax.errors import InputError
from perturbjax.models.noise_groups import decoder_noise
from perturbjax.noise import Noise, Population, Rule
from perturbjax.noise.distributions import DistributionName
from perturbjax.noise.spec import Scale
from perturbjax.randopt.racing import Race, RacingRule
from perturbjax.randopt.sigma_halving import SigmaHalving
from perturbjax.runs import config as runs
from perturbjax.runs.config import Base, check_choices, check_positive, check_seed, check_text
from perturbjax.scoring.strategy import Strategy

AUTO: Literal["auto"] = "auto"
"""Sigmas that a search chooses when it begins (``randopt.auto_sigmas``)."""
Searcher = Literal["random", "screen", "halving"]
MOST_SCREENED = 2**26
"""Candidates that are screened at most: one number of each is in memory."""
MOST_SCORES = 2**31
"""Candidates times search examples at most: the table of their scores is in memory."""
MOST_IN_CHUNK = 2**20
"""Candidates of a compiled call at most: all of them are lost where a run is killed."""
FEWEST_CHOSEN, MOST_CHOSEN = 4, 2**18
"""Candidates that a screening chooses: at least two that it puts first and two that are drawn, to compare; at most what one file holds."""


@dataclass(frozen=True)
class Data:
    """The questions, in three splits that never meet."""

    task: str = "sst2"
    """A task's name; a .jsonl file with question, answer and optional choices; or your own Task, as module:attribute
    or path.py:attribute, with arguments if any: ./my_task.py:Sums(3)."""
    search_examples: int = 64
    """Examples that score the candidates."""
    select_examples: int = 64
    """Other examples, on which K, sigma, the best prompt and the sampling temperature are chosen."""
    test_examples: int = 256
    """Yet other examples, used once, for the figures that are reported."""
    template: str | None = None
    """Prompt template of the candidates, by name; the task's first when left out."""
    max_new_tokens: int | None = None
    """Generation budget of a generation task, in tokens; the task's own when left out."""

    def validate(self) -> None:
        check_text("task", self.task)
        check_positive(self, "search_examples", "select_examples", "test_examples", "max_new_tokens")


@dataclass(frozen=True)
class Search:
    """The population, its noise, and how the best are found."""

    population: int = 48
    """N, the number of candidates sampled and scored."""
    top_k: int = 8
    """K, how many of the best candidates may vote."""
    sigmas: tuple[float, ...] | Literal["auto"] = (0.0005, 0.001, 0.002)
    """Noise scales, comma separated; candidate i takes number i mod their count. auto: chosen by the rule of perturbjax calibrate, on
    prompts of the search examples."""
    noise: DistributionName = "gaussian"
    """Distribution of the noise."""
    rank: int | None = None
    """Low-rank noise of this rank on the matrices; without it the noise is full rank."""
    scale: Scale = "absolute"
    """What sigma is relative to: nothing (absolute, as in the paper), each leaf's RMS, or modular: it is the R of Modular-Norm RandOpt, the
    step of the whole model in the modular norm, 0.16 to 0.64 in that paper."""
    rules: tuple[Rule, ...] = ()
    """Another scale for parameters whose path matches, or none: REGEX=absolute|rms|modular|exclude, comma separated; first match wins.
    The name of a group, of a decoder, excludes all others: embedding (and head), attention, mlp, norms."""
    antithetic: bool = False
    """Candidates 2j and 2j+1 share their noise with opposite signs."""
    searcher: Searcher = "random"
    """Which candidates are scored. random: the first N of the seed. screen: of --screened candidates those that one gradient of the search
    examples' log-odds puts first, and a quarter of N drawn from the others; multiple-choice tasks only. halving: all sigmas get a few, then
    the better half of them more, until one is left; with --racing off."""
    screened: int | None = None
    """How many candidates --searcher screen ranks by the gradient, without running them: 100000 and more. A low --rank makes it cheap: at
    rank 1 each costs about as much as one token."""
    racing: RacingRule = "halving"
    """halving: stop the weaker candidates after a slice of the search examples, to save tokens; bounds: stop only those that are very
    likely out; dead: leave out the examples that the first 32 candidates all get right, which then count as right; off: score every
    candidate on every example."""
    strategy: Literal["auto", Strategy] = "auto"
    """How noise meets the weights: lazy (made where a weight is used), copy (one perturbed copy per candidate in flight), low_rank (factors
    beside the shared weights, with --rank), or auto, by a cost model. Results agree to rounding."""
    seed: int = 0
    """Seed of the noise, the splits and the sampled controls."""

    def validate(self) -> None:
        check_positive(self, "population", "top_k", "screened")
        if self.top_k > self.population:
            raise InputError(f"`top_k` {self.top_k}: at most `population` {self.population} can be kept; lower one or raise the other")
        check_seed(self.seed)
        check_choices(self)
        self._validate_screening()
        if self.searcher == "halving" and self.racing != "off":
            raise InputError(
                f"`racing` {self.racing}: `searcher` halving compares sigmas by candidates that answered everything; add `racing` off"
            )
        self.to_noise()
        (replace(self, sigmas=(1.0, 2.0)) if self.sigmas == AUTO else self).to_population()
        if self.scale == "modular" and self.sigmas == Search.sigmas:
            raise InputError(
                f"`sigmas` {','.join(map(str, self.sigmas))}: those of scale absolute; with `scale` modular they are R, 0.16 to 0.64 in "
                "the paper: give some, or auto"
            )
        if self.strategy == "low_rank" and self.rank is None:
            raise InputError("`strategy` low_rank: the noise has full rank; give it a `rank`, or choose lazy or copy")

    def _validate_screening(self) -> None:
        if self.searcher != "screen":
            if self.screened is not None:
                raise InputError(f"`screened` {self.screened}: only `searcher` screen takes it; add that, or leave it out")
            return
        if self.screened is None:
            raise InputError("`searcher` screen: needs `screened`, how many candidates are ranked by the gradient, such as 100000")
        if not FEWEST_CHOSEN <= self.population <= MOST_CHOSEN:
            raise InputError(
                f"`population` {self.population}: `searcher` screen takes from {FEWEST_CHOSEN}, two of them drawn, to {MOST_CHOSEN}"
            )
        if not self.population < self.screened <= MOST_SCREENED:
            raise InputError(
                f"`screened` {self.screened}: from {self.population + 1}, one more than `population`, to {MOST_SCREENED} are required"
            )

    @property
    def halving(self) -> SigmaHalving | None:
        """How the candidates are shared among the sigmas, if by halving.

        Raises:
            InputError: too few sigmas or candidates for it.
        """
        if self.searcher != "halving" or self.sigmas == AUTO:
            return None
        return SigmaHalving(len(self.sigmas), self.population, self.antithetic)

    def to_noise(self) -> Noise:
        """The noise specification, which checks itself."""
        try:
            return decoder_noise(self.noise, self.rank, self.scale, self.rules)
        except ValueError as error:
            raise InputError(_field(error, "distribution", "noise")) from error

    def to_population(self) -> Population:
        """The whole population, which checks itself: those that are scored, or those that they are chosen from.

        Raises:
            InputError: a field that it is made of cannot be used, or the sigmas are yet to be chosen.
        """
        if self.sigmas == AUTO:
            raise InputError("`sigmas` auto: not chosen yet; a search chooses them when it begins")
        halving = self.halving
        try:
            if halving:
                Population(self.seed, self.population, self.sigmas, self.antithetic)
            size = halving.whole if halving else self.screened or self.population
            return Population(self.seed, size, self.sigmas, self.antithetic)
        except ValueError as error:
            raise InputError(_field(error, "size", "screened" if self.screened else "population")) from error


@dataclass(frozen=True)
class Machine(runs.Machine):
    """How the work is laid out on devices and processes. No result depends on any of it."""

    chunk: int = 4
    """Candidates per compiled call; their scores are committed together."""
    in_flight: int = 1
    """Candidates held in memory at once on a device, at most chunk."""

    def validate(self) -> None:
        super().validate()
        check_positive(self, "chunk", "in_flight")
        if self.chunk > MOST_IN_CHUNK:
            raise InputError(f"`chunk` {self.chunk}: at most {MOST_IN_CHUNK} is required")
        if self.in_flight > self.chunk:
            raise InputError(f"`in_flight` {self.in_flight}: at most `chunk` {self.chunk} can be in flight; lower one or raise the other")


@dataclass(frozen=True)
class Run(runs.Run):
    """Where the run lies and how it is continued. No result depends on any of it."""

    require_reliability: bool = False
    """Stop, with exit code 2, where the first scores say that the search cannot rank its candidates (reliability below 0.3). What was
    scored is committed: the same command with --resume and without this goes on."""
    profile: Path | None = None
    """Directory that gets a jax.profiler trace of a few candidates, to be opened with xprof; they are scored once more for it."""


@dataclass(frozen=True)
class Config:
    """Search for good perturbations of a model, let the best vote, and report how they do beside honest controls.

    - the default run: perturbjax randopt
    - a task of your own: perturbjax randopt --task questions.jsonl --population 200 --top-k 10
    - arithmetic with random signs as noise: perturbjax randopt --task arithmetic --noise rademacher --sigmas 0.001,0.002
    - a huge population, of which one gradient chooses whom to run: perturbjax randopt --rank 1 --searcher screen --screened 100000
    - after a kill: the same command with --resume

    Questions are assigned to three splits that never meet: search scores the candidates, select makes every choice (K, sigma, prompt,
    temperature), test is measured once, at the end."""

    base: Base = field(default_factory=Base)
    data: Data = field(default_factory=Data)
    search: Search = field(default_factory=Search)
    machine: Machine = field(default_factory=Machine)
    run: Run = field(default_factory=Run)

    IDENTITY: ClassVar = ("base", "data", "search")
    """The parts that the result depends on: two runs with equal fields in them are the same run."""

    def validate(self) -> None:
        """Check every field that can be checked without loading anything.

        Raises:
            InputError: one line naming the field, its value, what is required.
        """
        for part in (self.base, self.data, self.search, self.machine):
            part.validate()
        if (scores := self.search.population * self.data.search_examples) > MOST_SCORES:
            given = f"`population` {self.search.population}, `search_examples` {self.data.search_examples}"
            raise InputError(f"{given}: a table of {scores} scores; at most {MOST_SCORES} are required")
        if self.run.require_reliability and (self.search.population < 2 or self.race.ends[0] < 2):
            raise InputError(
                f"`require_reliability`: at least 2 candidates and 2 search examples are required, there are {self.search.population} and "
                f"{self.data.search_examples}; raise them, or leave it out"
            )

    @property
    def race(self) -> Race:
        """The race that these settings make."""
        halving = self.search.halving
        rungs = halving.rungs if halving else ()
        return Race(self.search.racing, self.search.population, self.data.search_examples, self.search.top_k, rungs=rungs)


def _field(error: ValueError, name: str, field: str) -> str:
    """The message of an argument's own check, which begins with the argument's name, about the field of another name."""
    message = str(error)
    first, _, rest = message.partition(" ")
    return f"`{field if first == name else first}` {rest}"
