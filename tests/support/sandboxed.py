"""Tests of generated programs: skipped, with the reason, where the platform has no sandbox for them."""

import pytest

from perturbjax.errors import InputError
from perturbjax.tasks.sandbox import require_sandbox


def require_sandbox_or_skip() -> None:
    try:
        require_sandbox()
    except InputError as error:
        pytest.skip(str(error))
