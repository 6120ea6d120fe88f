"""The command line: one file a command."""

from perturbjax.cli.app import main as main
