"""report.html: one file that opens offline. A chapter's template extends ``base.html`` and fills its blocks; the command that makes the
run again is one of them."""

import base64
import shlex
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar, cast

from perturbjax.errors import InputError
from perturbjax.records import from_json
from perturbjax.report import words
from perturbjax.runs.files import read_json, write_atomically

T = TypeVar("T")

_FILTERS = ("percent", "percent_range", "points", "points_range", "count", "rate", "probability")


def read_run_record(kind: type[T], run: Path) -> tuple[T, dict[str, Any]]:
    """What a page reads of config.json, and the whole of it.

    Args:
        kind: a dataclass with some of its fields, ``config`` among them: the chapter's settings, which check themselves.
        run: the run directory.

    Raises:
        InputError: the file is missing or damaged, or its settings cannot be used.
    """
    path = run / "config.json"
    content = read_json(path)
    names = [each.name for each in fields(cast(Any, kind))]
    record: Any = from_json(kind, {name: content[name] for name in names if name in content}, str(path))
    try:
        record.config.validate()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return record, content


def write_page(
    path: Path,
    package: str,
    values: dict[str, Any],
    filters: dict[str, Any],
    plots: Sequence[Path] = (),
    template: str = "report.html",
) -> None:
    """Render a template of a package and write it atomically; equal values give equal bytes.

    Args:
        path: the file to write.
        package: the chapter's, whose templates are used.
        values: what the template shows; a value that is missing is an error.
        filters: the chapter's own, beside those that put numbers in words.
        plots: PNG files, embedded as ``images[stem]``.
        template: one of ``templates/``.

    Raises:
        InputError: jinja2 is not installed.
    """
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise missing_extra(error) from error

    loaders = [jinja2.PackageLoader(name) for name in (package, "perturbjax.report")]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update({name: getattr(words, name) for name in _FILTERS} | filters)
    environment.filters["together"] = lambda text: text.replace(" %", "\u00a0%")
    images = {plot.stem: "data:image/png;base64," + base64.b64encode(plot.read_bytes()).decode() for plot in plots}
    page = environment.get_template(template).render(images=images, **values)
    write_atomically(path, lambda file: file.write(page.encode()))


def reproduce_command(chapter: str, config: Any) -> str:
    """The ``perturbjax CHAPTER`` call that gives the same results, quoted for a shell; settings that were left out stay out.

    Args:
        chapter: name of the command.
        config: the chapter's ``Config``, whose ``IDENTITY`` names the parts that the result depends on.
    """
    command = ["perturbjax", chapter]
    for part in (getattr(config, name) for name in config.IDENTITY):
        for field in fields(part):
            value, flag = getattr(part, field.name), "--" + field.name.replace("_", "-")
            if isinstance(value, bool):
                # Of a setting that is on by default there is only the flag that turns it off.
                command += [flag if value else f"--no-{flag[2:]}"] if value != field.default else []
            elif value is not None and (value != () or field.default not in (MISSING, ())):
                command += [flag, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return shlex.join(command)


def missing_extra(error: ModuleNotFoundError) -> InputError:
    """What to say when a module of the ``report`` extra is not installed."""
    return InputError(f"report: {error.name} is not installed; pip install 'perturbjax[report]'")
