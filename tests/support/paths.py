"""Where things lie in the tree."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
SUPPORT = TESTS / "support"
FIXTURES = TESTS / "fixtures"
DATA = TESTS / "data"
TINY_MODELS = sorted(folder.name for folder in FIXTURES.glob("tiny_*"))
"""A tiny model of every family: directories of scripts/make_fixtures.py."""
SCRIPTS = ROOT / "scripts"
COMPILED = ROOT / ".pytest_cache" / "d" / "compiled"
"""Programs that the tests have compiled, by machine."""
