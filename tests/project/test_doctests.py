"""The examples in the docstrings run, and each function that embedders use has one."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

import perturbjax as pj

ROOT = Path(pj.__file__).parent
MODULES = sorted(
    "perturbjax" + ".".join(["", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if ">>>" in path.read_text()
)
WITH_EXAMPLES = [pj.perturb, pj.lazy, pj.lazily, pj.score_population, pj.top_k, pj.Ensemble.apply, pj.vote, pj.AskTell]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_a_module(name):
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name, extraglobs={"__name__": "__main__"}):
        output: list[str] = []
        failed = runner.run(test, out=output.append).failed
        assert not failed, "".join(output)


@pytest.mark.parametrize("public", WITH_EXAMPLES, ids=lambda public: public.__qualname__)
def test_public_functions_have_examples(public):
    assert ">>>" in (inspect.getdoc(public) or "")
