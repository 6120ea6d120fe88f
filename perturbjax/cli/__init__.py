"""The command line: one file a command."""

from perturbjax.cli.main.main import main as main
