"""Domains of a corpus: rows that say theirs, so that each feedback steers the rows of its own domain."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from perturbjax.errors import InputError
from perturbjax.records import read_json_lines, refuse
from perturbjax.train.demonstrations import DATASETS, Demonstration, dataset_rows
from perturbjax.train.rows import Rows, join_rows
from perturbjax.vpretrain.corpus import row_name


def corpus_domains(spec: str, corpus: Sequence[Demonstration], wanted: Sequence[str]) -> tuple[str, ...]:
    """The domain of each demonstration of a corpus: the field ``domain`` of its row.

    Args:
        spec, corpus: as ``load_corpus`` read it.
        wanted: the domains that feedback steers.

    Raises:
        InputError: the rows have no domains, one of them is not wanted, or one that is wanted has no rows.
    """
    rows: Any = ()
    if spec.startswith(DATASETS):
        rows = dataset_rows(spec, "corpus")
    elif spec.endswith(".jsonl"):
        rows = read_json_lines(Path(spec), f"corpus '{spec}'")
    if not rows or "question" in rows[0][1]:
        kinds = "a .jsonl file with text, with prompt and response, or with messages is required"
        raise InputError(f"`corpus` {spec}: with `feedback_domains` its rows need a domain; {kinds}")
    domains = {}
    for where, row in rows:
        domain = row.get("domain")
        if domain not in wanted:
            refuse(where, "domain", domain, f"one of {', '.join(wanted)}, the `feedback_domains`, is required")
        domains[row_name(where)] = domain
    found = tuple(domains[each.id.partition(".")[0]] for each in corpus)
    for domain in wanted:
        if domain not in found:
            there = ", ".join(sorted(set(found)))
            raise InputError(f"`feedback_domains` {domain}: no row of the corpus {spec} has it; one of {there} is required")
    return found


def rows_by_domain(corpus: Sequence[Demonstration], domains: Sequence[str], names: Sequence[str], pack: Callable[[Any, str], Rows]) -> Rows:
    """Packed rows, each of one domain, whose number is in the array ``domain`` (N,) int32.

    Args:
        corpus, domains: demonstrations and the domain of each.
        names: the domains in the order of their numbers.
        pack: (demonstrations, what messages call them) -> rows.
    """
    sets = {name: pack([each for each, domain in zip(corpus, domains, strict=True) if domain == name], f"corpus, {name}") for name in names}
    joined = join_rows(sets, dict.fromkeys(names, 1.0))
    numbers = np.repeat(np.arange(len(sets), dtype=np.int32), [len(rows) for rows in sets.values()])
    return replace(joined, arrays=joined.arrays | {"domain": numbers})
