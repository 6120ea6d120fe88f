"""Tasks that are a user's code: ``module:attribute`` or ``path.py:attribute``, with arguments if any, as ``tasks.py:Sums(digits=3)``."""

import ast
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from perturbjax.errors import InputError, one_line
from perturbjax.tasks.base import Task
from perturbjax.tasks.check import check_examples, check_task
from perturbjax.tasks.checked import CheckedTask, exits_raised

FORM = re.compile(r"(?P<place>.+?\.py|[^():/\\]+):(?P<path>[^():]+)(?P<call>\(.*\))?", re.DOTALL)


@dataclass(frozen=True)
class UserCode:
    """What such a name says.

    Attributes:
        spec: the name itself.
        place: a module's dotted name, or the path of a ``.py`` file.
        path: attributes in it, joined by dots.
        args, kwargs: literals that it is called with.
        argument: what messages call the name.
    """

    spec: str
    place: str
    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    argument: str = "task"

    @staticmethod
    def parse(spec: str, argument: str = "task") -> "UserCode":
        """
        Raises:
            InputError: the text has another form, or an argument is no literal.
        """
        match = FORM.fullmatch(spec)
        if match is None or not (_is_dotted(match["path"]) and (match["place"].endswith(".py") or _is_dotted(match["place"]))):
            forms = "module:attribute (as in my_package.my_module:my_task) or path.py:attribute"
            raise InputError(f"{argument} {spec!r}: not a task name, a path.jsonl, {forms}")
        try:
            # What stands between the parentheses is parsed, never evaluated.
            call: Any = ast.parse(f"f{match['call'] or '()'}", mode="eval").body
            readable = isinstance(call.func, ast.Name)  # and no f(1)(2), whose first arguments are in ``func``
            args = tuple(ast.literal_eval(each) for each in call.args)
            kwargs = {each.arg: ast.literal_eval(each.value) for each in call.keywords}
            readable &= None not in kwargs  # **mapping
        except (SyntaxError, ValueError, TypeError, AttributeError, RecursionError, MemoryError):
            readable, args, kwargs = False, (), {}
        if not readable:
            raise InputError(f"{argument} {spec!r}: its arguments must be numbers, quoted texts, True, False, None, or lists of them")
        return UserCode(spec, match["place"], match["path"], args, kwargs, argument)

    @property
    def where(self) -> str:
        """What messages begin with."""
        return f"{self.argument} {self.spec!r}"

    def load(self) -> Task:
        """The task, checked, as its examples are.

        Raises:
            InputError: importing or calling it fails, or what it gives is no ``Task``.
        """
        task = CheckedTask(check_task(self._made(self._attribute(self._module())), self.where), self.where)
        check_examples(task, self.where)
        return task

    def _module(self) -> ModuleType:
        file = Path(os.path.expanduser(self.place)).absolute() if self.place.endswith(".py") else None
        if file is not None and not file.is_file():
            raise InputError(f"{self.where}: there is no file {file}; correct the path")
        # Other modules may lie beside a file. A console script does not have the working directory on the path, where modules mostly lie.
        folder = os.getcwd() if file is None else str(file.parent)
        sys.path.insert(0, folder)
        try:
            with exits_raised():
                return importlib.import_module(self.place) if file is None else _import_file(file)
        except (Exception, SystemExit) as error:  # the user's module may fail in any way
            reason = one_line(error, 200)
            raise InputError(f"{self.where}: importing {self.place} failed ({reason}); correct the module or its name") from error
        finally:
            sys.path.remove(folder)

    def _attribute(self, module: ModuleType) -> Any:
        found: Any = module
        for part in self.path.split("."):
            if not hasattr(found, part):
                near = get_close_matches(part, dir(found), n=3)
                hint = f"; did you mean {', '.join(near)}?" if near else "; give the name of a task, class or function in it"
                raise InputError(f"{self.where}: {self.place} has no attribute {self.path}{hint}")
            found = getattr(found, part)
        return found

    def _made(self, found: Any) -> Any:
        given = bool(self.args or self.kwargs)
        # A class has its instances' attributes and so would pass for a task.
        if not inspect.isclass(found) and (not callable(found) or isinstance(found, Task)):
            if given:
                raise InputError(f"{self.where}: {self.path} is a {type(found).__name__}, which takes no arguments; leave them out")
            return found
        try:
            with exits_raised():
                return found(*self.args, **self.kwargs)
        except InputError:
            raise
        except (Exception, SystemExit) as error:  # the user's code may fail in any way
            how = "with these arguments" if given else "without arguments"
            raise InputError(
                f"{self.where}: calling it {how} failed ({one_line(error, 200)}); give a task, or what makes one when called"
            ) from error


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _import_file(file: Path) -> ModuleType:
    """The module of a file, under a name of its own: ``json.py`` must not stand for the standard library's."""
    name = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
