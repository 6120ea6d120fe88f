"""Honest evaluation: disjoint splits, controls at equal votes, intervals, and what everything cost."""

from perturbjax.randopt.controls import Evaluation as Evaluation
from perturbjax.randopt.controls import SearchRecord as SearchRecord
from perturbjax.randopt.controls import evaluate_run as evaluate_run
from perturbjax.randopt.ensembles import EnsembleEvaluation as EnsembleEvaluation
from perturbjax.randopt.ensembles import Prediction as Prediction
from perturbjax.randopt.ensembles import compare_to_base as compare_to_base
from perturbjax.randopt.ensembles import evaluate_ensemble as evaluate_ensemble
from perturbjax.randopt.replies import Engine as Engine
from perturbjax.randopt.replies import OnStage as OnStage
from perturbjax.report.intervals import paired_bootstrap as paired_bootstrap
from perturbjax.report.intervals import wilson as wilson
from perturbjax.tasks.splits import Splits as Splits
from perturbjax.tasks.splits import make_splits as make_splits
