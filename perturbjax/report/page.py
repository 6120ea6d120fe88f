"""report.html: one file that opens offline. A chapter's template extends ``base.html`` and fills its blocks."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perturbjax.errors import InputError
from perturbjax.report import words
from perturbjax.runs.files import write_atomically

_FILTERS = ("percent", "percent_range", "points", "points_range", "count", "rate", "probability")


def write_page(path: Path, package: str, values: dict[str, Any], filters: dict[str, Any], plots: Sequence[Path] = ()) -> None:
    """Render ``templates/report.html`` of a package and write it atomically; equal values give equal bytes.

    Args:
        path: the file to write.
        package: the chapter's, whose templates are used.
        values: what the template shows; a value that is missing is an error.
        filters: the chapter's own, beside those that put numbers in words.
        plots: PNG files, embedded as ``images[stem]``.

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
    page = environment.get_template("report.html").render(images=images, **values)
    write_atomically(path, lambda file: file.write(page.encode()))


def missing_extra(error: ModuleNotFoundError) -> InputError:
    """What to say when a module of the ``report`` extra is not installed."""
    return InputError(f"report: {error.name} is not installed; pip install 'perturbjax[report]'")
