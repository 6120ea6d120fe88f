#!/usr/bin/env python
"""Whether the sandbox grades MBPP and HumanEval rightly: every gold solution must pass and a mutant of it fail.

Two mutants of a solution: its functions return None at once, and the first operator, comparison or whole number that can be changed is
changed. The second kind may be equivalent to the solution or beyond the tests; how many pass is printed. About a minute on two cores:

    .venv/bin/python scripts/check_programs.py
"""

import argparse
import ast
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

from perturbjax.tasks import load_task
from perturbjax.tasks.base import Example
from perturbjax.tasks.programs import ProgramTask

_OTHER = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Add}
_OTHER |= {ast.Lt: ast.GtE, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}


class _First(ast.NodeTransformer):
    """Changes one thing."""

    done = False

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if not self.done and type(node.op) in _OTHER:
            self.done, node.op = True, _OTHER[type(node.op)]()
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if not self.done and type(node.ops[0]) in _OTHER:
            self.done, node.ops[0] = True, _OTHER[type(node.ops[0])]()
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if not self.done and type(node.value) is int:
            self.done, node = True, ast.Constant(node.value + 1)
        return node


def changed(code: str) -> str | None:
    """The code with one thing changed, None if nothing can be."""
    transformer, tree = _First(), ast.parse(code)
    tree = ast.fix_missing_locations(transformer.visit(tree))
    return ast.unparse(tree) if transformer.done else None


def hollow(code: str) -> str:
    """The code with every top-level function returning None."""
    tree = ast.parse(code)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            node.body = [ast.parse("return None").body[0]]
    return ast.unparse(ast.fix_missing_locations(tree))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=None, help="of each set; all when left out")
    rows = parser.parse_args().rows
    warnings.simplefilter("ignore", SyntaxWarning)  # of the solutions
    for name in ("humaneval", "mbpp"):
        task = load_task(name)
        assert isinstance(task, ProgramTask)
        examples = task.examples()[:rows]

        def passes(asked: tuple[Example, str], task: ProgramTask = task) -> bool:
            return task.score(asked[1], asked[0]) == 1.0

        start = time.perf_counter()
        with ThreadPoolExecutor(2) as pool:
            gold = list(pool.map(passes, [(example, example.answer) for example in examples]))
            seconds = time.perf_counter() - start
            none = list(pool.map(passes, [(example, hollow(example.answer)) for example in examples]))
            mutants = [(example, mutant) for example in examples if (mutant := changed(example.answer))]
            mutated = list(pool.map(passes, mutants))
        failing = [example.id for example, right in zip(examples, gold, strict=True) if not right]
        print(f"{name}: {sum(gold)} of {len(gold)} gold solutions pass {failing or ''}, {seconds / len(gold):.3f} s each, two at once")
        print(f"{name}: {sum(none)} of {len(none)} that return None pass, {sum(mutated)} of {len(mutated)} with one thing changed")


if __name__ == "__main__":
    main()
