"""Where things lie in the tree."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
SUPPORT = TESTS / "support"
FIXTURES = TESTS / "fixtures"
DATA = TESTS / "data"
SCRIPTS = ROOT / "scripts"
