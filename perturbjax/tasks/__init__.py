"""Tasks: examples, how to ask them, how to grade the replies. Host only; nothing here imports jax."""

from perturbjax.tasks.base import Example as Example
from perturbjax.tasks.base import Message as Message
from perturbjax.tasks.base import Prompt as Prompt
from perturbjax.tasks.base import Task as Task
from perturbjax.tasks.base import Template as Template
from perturbjax.tasks.jsonl import read_jsonl as read_jsonl
from perturbjax.tasks.layout import ChoiceTask as ChoiceTask
from perturbjax.tasks.layout import GenerationTask as GenerationTask
from perturbjax.tasks.layout import Layout as Layout
from perturbjax.tasks.registry import TASK_NAMES as TASK_NAMES
from perturbjax.tasks.registry import load_task as load_task
from perturbjax.tasks.registry import template_by_name as template_by_name
