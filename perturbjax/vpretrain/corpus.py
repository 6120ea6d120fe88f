"""Texts to pretrain on, as demonstrations: documents, or problems with their solutions, of which the prompts are not learned."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perturbjax.errors import InputError
from perturbjax.pretrained.tokenizer import Tokenizer
from perturbjax.records import open_regular, read_json_lines, refuse
from perturbjax.tasks.base import Prompt
from perturbjax.train.demonstrations import (
    DATASETS,
    Demonstration,
    EncodedDemonstration,
    dataset_rows,
    encode_demonstrations,
    load_demonstrations,
    question_key,
)


def load_corpus(spec: str, argument: str = "corpus") -> tuple[Demonstration, ...]:
    """Documents and demonstrations of a file, a task or a data set; a document is a demonstration without a prompt.

    Args:
        spec: a ``.txt`` file, whose documents are separated by empty lines; a ``.jsonl`` file or ``datasets:NAME:SPLIT`` with ``text``; or
            whatever ``load_demonstrations`` reads.
        argument: what the messages call it.

    Raises:
        InputError: it cannot be read, or holds nothing.
    """
    if spec.endswith(".txt"):
        try:
            with open_regular(Path(spec)) as file:
                text = file.read().decode("utf-8-sig").replace("\r\n", "\n")
        except (OSError, ValueError) as error:
            raise InputError(f"{argument} '{spec}': the file cannot be read ({error}); give the path of a UTF-8 text file") from error
        found = [part for part in text.split("\n\n") if part.strip()]
        if not found:
            raise InputError(f"{argument} '{spec}': no text; give a file that holds some")
        return tuple(_document(f"document-{number}", text) for number, text in enumerate(found))
    rows: Any = None
    if spec.startswith(DATASETS):
        rows = dataset_rows(spec, argument)
    elif spec.endswith(".jsonl"):
        rows = read_json_lines(Path(spec), f"{argument} '{spec}'")
    if rows == []:
        raise InputError(f"{argument} '{spec}': no rows; give one object a line, with text, with messages, or with prompt and response")
    if not rows or not isinstance(rows[0][1], dict) or "text" not in rows[0][1]:
        return load_demonstrations(spec, argument=argument)
    for where, row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not row["text"].strip():
            refuse(where, "text", row.get("text") if isinstance(row, dict) else row, "a text that is not empty is required")
    return tuple(_document(row_name(where), row["text"]) for where, row in rows)


def row_name(where: str) -> str:
    """What a row is called by its place in a file: ``corpus 'x.jsonl': line 3`` -> ``line-3``."""
    return where.rpartition(": ")[2].replace(" ", "-")


def _document(name: str, text: str) -> Demonstration:
    return Demonstration(name, Prompt(()), text, question_key(text))


def is_document(demonstration: Demonstration) -> bool:
    """Whether all of it is learned."""
    return not demonstration.prompt.text and not demonstration.prompt.messages


def encode_corpus(corpus: Sequence[Demonstration], tokenizer: Tokenizer, row_tokens: int) -> list[EncodedDemonstration]:
    """Token ids. A document begins after the token that ends the one before, and is cut into pieces that fit into a row; the last piece
    ends with that token. Demonstrations are not cut."""
    encoded: list[EncodedDemonstration] = []
    end = tokenizer.turn_end
    for each in corpus:
        if not is_document(each):
            encoded += encode_demonstrations([each], tokenizer)
            continue
        before, ids = end, [*tokenizer.encode(each.response), end]
        for start in range(0, len(ids), row_tokens):
            piece = tuple(ids[start : start + row_tokens])
            encoded.append(EncodedDemonstration(f"{each.id}.{start // row_tokens}", (before,), piece))
            before = piece[-1]
    return encoded
