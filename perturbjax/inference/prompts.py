"""Examples of a task as the token ids that a model reads."""

from __future__ import annotations

from collections.abc import Sequence

from perturbjax.errors import InputError
from perturbjax.pretrained import Model
from perturbjax.tasks.base import Example, Task, Template


def encode_prompts(
    model: Model, task: Task, examples: Sequence[Example], template: Template, max_new_tokens: int
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Token ids of each example's prompt, and of each of its choices.

    Raises:
        InputError: a prompt, with its choice or its reply, is longer than the model's context.
    """
    prompts = [task.prompt(example, template) for example in examples]
    ids = model.tokenizer.encode_prompts(prompts)
    choices = [[model.tokenizer.encode(choice) for choice in prompt.choices] for prompt in prompts]
    for example, prompt, branches in zip(examples, ids, choices, strict=True):
        needed = len(prompt) + max([max_new_tokens, *map(len, branches)])
        if needed > model.config.max_positions:
            raise InputError(
                f"example {example.id!r} needs {needed} tokens under template {template.name!r}; "
                f"the model takes {model.config.max_positions}: a shorter example or template, or a model that takes more, is required"
            )
    return ids, choices
