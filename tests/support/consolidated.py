"""Finished runs to consolidate: nothing was searched, the members' scores are made up."""

from pathlib import Path
from typing import Any

from perturbjax.randopt import config as randopt
from perturbjax.randopt.setup import Parts, load_parts
from perturbjax.runs.config import Base
from support.cli_tiny import MODEL
from support.searched import save_ensemble, searched_run


def finished_run(path: Path, questions: Path, sizes: tuple[int, int, int] = (4, 4, 5), **search: Any) -> Parts:
    """A run in ``path`` with the members 5 and 2 of 6 candidates; ``sizes`` of its splits, ``search``: settings of ``randopt.Search``."""
    data = randopt.Data(str(questions), *sizes)
    parts = load_parts(randopt.Config(Base(str(MODEL), "float32"), data, randopt.Search(6, 2, (0.01, 0.1), **search)), lambda _: None)
    save_ensemble(parts, searched_run(parts, path))
    return parts


def content(folder: Path) -> dict[Path, bytes]:
    """Every file of a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
