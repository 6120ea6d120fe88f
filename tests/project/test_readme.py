"""README's examples run as printed, one after the other, and do what they are there to show."""

import re
import subprocess
import sys

from support.paths import ROOT

README = ROOT / "README.md"


def test_the_python_examples_run_and_the_vote_beats_the_base():
    code = "\n".join(re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL))
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    base, voted = map(float, done.stdout.split())
    assert voted > base + 0.1
