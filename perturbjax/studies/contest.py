"""The searchers of ``studies.rivals`` on one task: each keeps the budget, chooses on select, and answers the test questions once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from perturbjax.errors import InputError
from perturbjax.inference.log_odds import GRADIENT_TOKENS, log_odds, objective_gradient, right_choices
from perturbjax.noise import Noise, Population, scales
from perturbjax.randopt.flow import run_base, run_members, run_voters, vote_curve
from perturbjax.report import comparison
from perturbjax.report.accounting import wilson
from perturbjax.runs.console import Progress
from perturbjax.scoring import top_k
from perturbjax.searchers import Cost, EvolutionStrategy, choose, gradient_step, inner_products, rebuild
from perturbjax.searchers.evolution import rate_of_length
from perturbjax.studies.estimates import Estimate
from perturbjax.studies.rivals import BASE, BY_LOG_ODDS, ES, GRPO, SCREENING, SEARCH, SFT, STEP, Config, Row, TaskRows
from perturbjax.studies.tuning import PolicyTuner, Tuner, demonstration_rows
from perturbjax.tasks.base import Task, Template
from perturbjax.tasks.splits import Splits
from perturbjax.train.rows import Rows
from perturbjax.tree import derived_seed

if TYPE_CHECKING:
    from perturbjax.inference.engine import Engine
    from perturbjax.inference.outputs import EncodedBatch, Outputs
    from perturbjax.pretrained import Model

LENGTHS = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0)
"""Of the gradient step, in sigmas along the gradient: the best of 100,000 candidates lies about 4 up."""


@dataclass(frozen=True)
class Entrant:
    """What a searcher came to: its (B,) test scores, what it chose, and what it spent (as in ``Row``)."""

    name: str
    what: str
    scores: np.ndarray
    flops: float = 0.0
    drawn: float = 0.0
    search_tokens: int = 0
    select_tokens: int = 0


@dataclass(frozen=True)
class Contest:
    """One task: its questions on the engine, and the searchers.

    Attributes:
        search, select, test: prepared questions.
        cost: the formula.
        right: (D,) right choices of the search questions.
        demonstrations: the search questions with their answers, as SFT reads them.
    """

    config: Config
    model: Model
    engine: Engine
    task: Task
    template: Template
    splits: Splits
    search: EncodedBatch
    select: EncodedBatch
    test: EncodedBatch
    cost: Cost
    right: np.ndarray
    demonstrations: Rows
    progress: Progress

    @classmethod
    def of(cls, config: Config, model: Model, engine: Engine, task: Task, splits: Splits, progress: Progress) -> Contest:
        """Prepares one task.

        Raises:
            InputError: the budget does not pay the gradient and the products of the screening, or one step of SFT and of GRPO.
        """
        template = task.templates[0]
        search, select, test = (engine.prepare(getattr(splits, name), template) for name in ("search", "select", "test"))
        cost = Cost.of(model.config, model.params, engine.noise)
        rows, right = demonstration_rows(model, task, template, splits.search), right_choices(splits.search)
        found = cls(config, model, engine, task, template, splits, search, select, test, cost, right, rows, progress)
        if found.left < config.top_k:
            raise InputError(
                f"`screen` {config.screen}: a gradient and so many products leave {max(0, found.left)} of the {config.candidates} "
                f"`candidates` that the budget pays on {task.name}, fewer than `top_k` {config.top_k}; lower it, or raise `candidates`"
            )
        if not (found.tuning_steps and found.reward_steps):
            raise InputError(f"`candidates` {config.candidates}: they do not pay one step of SFT and of GRPO on {task.name}; raise it")
        return found

    @property
    def noise(self) -> Noise:
        return self.engine.noise

    @property
    def tokens(self) -> int:
        """Of the search questions, through one model."""
        return self.search.prompt_tokens

    @property
    def budget(self) -> float:
        return self.config.candidates * self.cost.forward(self.tokens)

    @property
    def screening_flops(self) -> float:
        """Of one gradient and all products."""
        return self.cost.gradient(self.tokens) + self.cost.products(self.config.screen)

    @property
    def left(self) -> int:
        """Candidates that the budget pays after the screening."""
        return int((self.budget - self.screening_flops) / self.cost.forward(self.tokens))

    @property
    def tuning_steps(self) -> int:
        """Steps of SFT that the budget pays."""
        return int(self.budget / self.cost.gradient(self.demonstrations.tokens))

    @property
    def reward_steps(self) -> int:
        """Steps of GRPO that the budget pays: a forward pass to draw answers and a gradient each."""
        return int(self.budget / (self.cost.forward(self.tokens) + self.cost.gradient(self.tokens)))

    def rows(self) -> TaskRows:
        """Every searcher, against the base and the plain search."""
        base = Entrant(BASE, "", run_base(self.engine, self.test).scores[0])
        differentiated = self.engine.prepare(self.splits.search, self.template, GRADIENT_TOKENS)
        _, gradient = objective_gradient(self.model.params, self.model.config, differentiated, self.config.objective)
        entrants = [base, *self.searches(), self.screened(gradient), self.evolved(), self.stepped(gradient)]
        del gradient
        entrants += [self.tuned(), self.rewarded(differentiated)]
        seed = derived_seed(self.config.seed, "bootstrap")

        def row(one: Entrant) -> Row:
            total = float(one.scores.sum(dtype=np.float64))
            accuracy = Estimate(total / len(one.scores), wilson(total, len(one.scores)))
            over_base, over_search = (comparison(one.scores, other.scores, seed) for other in (base, entrants[1]))
            spent: dict[str, Any] = {name: getattr(one, name) for name in ("flops", "drawn", "search_tokens", "select_tokens")}
            return Row(one.name, one.what, accuracy, over_base, over_search, **spent)

        return TaskRows(self.task.name, self.budget, tuple(map(row, entrants)))

    def searches(self) -> tuple[Entrant, Entrant]:
        """The plain search, its members chosen by accuracy and by log-odds."""
        indices = np.arange(self.config.candidates)
        outputs = self._members(self.config.population(), indices, self.search, SEARCH)
        spent = Entrant("", "", np.zeros(0), self.budget, float(len(indices) * self.cost.drawn), int(outputs.tokens.sum()))
        by = ((SEARCH, outputs.scores.mean(axis=1, dtype=np.float64)), (BY_LOG_ODDS, self._log_odds(outputs)))
        first, second = (self._voted(name, indices, scores, spent) for name, scores in by)
        return first, second

    def screened(self, gradient: Any) -> Entrant:
        """The vote of the best of those that the gradient put first."""
        config, cost, left = self.config, self.cost, self.left
        population = config.population()
        products = inner_products(gradient, population, self.noise, scales(self.model.params, self.noise), None, self.progress)
        indices = choose(products, left, config.explore, derived_seed(config.seed, "explore")).all
        outputs = self._members(population, indices, self.search, SCREENING)
        tokens, flops = int(outputs.tokens.sum()) + 3 * self.tokens, self.screening_flops + left * cost.forward(self.tokens)
        spent = Entrant("", "", np.zeros(0), flops, float((config.screen + left) * cost.drawn), tokens)
        found = self._voted(SCREENING, indices, self._log_odds(outputs), spent)
        return replace(found, what=f"{found.what}; {left} run")

    def evolved(self) -> Entrant:
        """The center of an evolution strategy after the step that is best on select, made again from its record."""
        config, size = self.config, self.config.es_size
        rate = rate_of_length(config.es_length, config.sigma, size)
        seed = derived_seed(config.seed, ES)
        strategy = EvolutionStrategy(self.model.params, self.noise, size, config.sigma, rate, config.antithetic, seed)
        accuracies, tokens = [], 0
        for number in range(config.candidates // size):
            outputs = self._members(strategy.ask(), np.arange(size), self.search, f"{ES}, step {number + 1}")
            tokens += int(outputs.tokens.sum())
            strategy.tell(outputs.scores.mean(axis=1, dtype=np.float64))
            accuracies.append(self._accuracy(strategy.params, self.select))
        best = _last_best(accuracies)
        scores = self._scores(rebuild(self.model.params, self.noise, strategy.steps[: best + 1]), self.test)
        self.engine.rebase(self.model.params)
        steps = len(accuracies)
        flops = steps * size * self.cost.forward(self.tokens) + self.cost.products(steps * size)
        what = f"step {best + 1} of {steps}"
        return Entrant(ES, what, scores, flops, 2.0 * steps * size * self.cost.drawn, tokens, steps * self.select.prompt_tokens)

    def stepped(self, gradient: Any) -> Entrant:
        """One step along the gradient, of the length that is best on select."""
        leaf_scales = scales(self.model.params, self.noise)

        def of(length: float) -> Any:
            return gradient_step(self.model.params, gradient, leaf_scales, length * self.config.sigma)

        accuracies = [self._accuracy(of(length), self.select) for length in LENGTHS]
        length = LENGTHS[int(np.argmax(accuracies))]
        scores = self._scores(of(length), self.test)
        self.engine.rebase(self.model.params)
        flops, tokens = self.cost.gradient(self.tokens), len(LENGTHS) * self.select.prompt_tokens
        return Entrant(STEP, f"{length:g} sigma long", scores, flops, 0.0, 3 * self.tokens, tokens)

    def tuned(self) -> Entrant:
        """SFT on all search questions."""
        tuner = Tuner(self.model, self.demonstrations, self.config.learning_rate)
        return self._trained(SFT, tuner, self.tuning_steps, self.cost.gradient(tuner.tokens), 3 * tuner.tokens)

    def rewarded(self, differentiated: EncodedBatch) -> Entrant:
        """GRPO on all search questions."""
        config, seed = self.config, derived_seed(self.config.seed, GRPO)
        asked = (self.search, differentiated, self.right, config.draws, config.grpo_learning_rate, seed)
        flops = self.cost.forward(self.tokens) + self.cost.gradient(self.tokens)
        return self._trained(GRPO, PolicyTuner(self.engine, self.model, *asked), self.reward_steps, flops, 4 * self.tokens)

    def _trained(self, name: str, tuner: Tuner | PolicyTuner, steps: int, flops: float, tokens: int) -> Entrant:
        """The base after as many steps as the budget pays, or after fewer, as select says; ``flops`` and ``tokens`` of a step."""
        looks = sorted({steps, *(2**n for n in range(steps.bit_length()) if 2**n <= steps)})
        accuracies, kept, best = [], None, 0
        with self.progress.bar(name, steps) as bar:
            for number, look in enumerate(looks):
                tuner.advance(look - tuner.step)
                accuracies.append(self._accuracy(tuner.params, self.select))
                if _last_best(accuracies) == number:
                    best, kept = look, self._scores(tuner.params, self.test)
                bar.update(look)
        assert kept is not None
        self.engine.rebase(self.model.params)
        what = f"step {best} of {steps}"
        return Entrant(name, what, kept, steps * flops, 0.0, steps * tokens, len(looks) * self.select.prompt_tokens)

    def _voted(self, name: str, indices: np.ndarray, scores: np.ndarray, spent: Entrant) -> Entrant:
        """The vote of the best of the candidates by their scores, K as chosen on select."""
        best = indices[top_k(scores, min(self.config.top_k, len(indices)))]
        on_select = self._voters(best, self.select, f"{name}, select")
        k = _last_best(vote_curve(on_select).accuracies.tolist()) + 1
        votes = vote_curve(self._voters(best[:k], self.test, f"{name}, test")).scores[-1]
        return replace(spent, name=name, what=f"vote of {k}", scores=votes, select_tokens=int(on_select.tokens.sum()))

    def _members(self, population: Population, indices: np.ndarray, batch: EncodedBatch, stage: str) -> Outputs:
        return run_members(self.engine, population, indices, batch, f"{self.task.name}: {stage}", self.progress)

    def _voters(self, indices: np.ndarray, batch: EncodedBatch, stage: str) -> Outputs:
        return run_voters(self.engine, self.config.population(), indices, batch, f"{self.task.name}: {stage}", self.progress)

    def _log_odds(self, outputs: Outputs) -> np.ndarray:
        """(n,) mean log-odds on the search questions, the lowest where they are not finite."""
        return np.nan_to_num(log_odds(outputs.log_probs, self.right).mean(axis=1), nan=-1e30, posinf=-1e30, neginf=-1e30)

    def _scores(self, params: Any, batch: EncodedBatch) -> np.ndarray:
        """(B,) scores of one model; the engine's base is then this model."""
        self.engine.rebase(params)
        return run_base(self.engine, batch).scores[0]

    def _accuracy(self, params: Any, batch: EncodedBatch) -> float:
        return float(self._scores(params, batch).mean(dtype=np.float64))


def _last_best(values: Sequence[float]) -> int:
    """The last position of the highest value."""
    return len(values) - 1 - int(np.argmax(values[::-1]))
