"""Honest evaluation: disjoint splits, controls at equal votes, intervals, and what everything cost."""

from perturbjax.evaluate.controls import Evaluation as Evaluation
from perturbjax.evaluate.controls import SearchRecord as SearchRecord
from perturbjax.evaluate.controls import evaluate_run as evaluate_run
from perturbjax.evaluate.engine import Engine as Engine
from perturbjax.evaluate.engine import OnStage as OnStage
from perturbjax.evaluate.ensembles import EnsembleEvaluation as EnsembleEvaluation
from perturbjax.evaluate.ensembles import Prediction as Prediction
from perturbjax.evaluate.ensembles import compare_to_base as compare_to_base
from perturbjax.evaluate.ensembles import evaluate_ensemble as evaluate_ensemble
from perturbjax.report.intervals import paired_bootstrap as paired_bootstrap
from perturbjax.report.intervals import wilson as wilson
from perturbjax.tasks.splits import Splits as Splits
from perturbjax.tasks.splits import make_splits as make_splits
