"""The subcommands: each a frozen dataclass of its arguments and a function that carries it out.

``cli`` parses, calls and turns errors into exit codes."""
