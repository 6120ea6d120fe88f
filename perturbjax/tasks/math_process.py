"""The process in which math-verify compares answers, started by ``math500``: it reads LaTeX of a model into sympy, which may take any time.

math-verify bounds neither memory nor, without signals of its own, time, so this process does: a request has 2 s of CPU time, and
a timer without a handler ends the process. Only its LaTeX reader is used, which builds expressions from a grammar; its reader of plain
expressions (``sympy.parse_expr``) evaluates text as Python and is left out. It imports nothing of perturbjax.

A request has ``gold`` and ``answer``, two pieces of LaTeX; the reply has ``equal``.
"""

import functools
import json
import logging
import resource
import signal
import sys

from math_verify import LatexExtractionConfig, parse, verify

CPU_S = 2.0
"""CPU time of one request, in seconds. An answer of MATH-500 takes 0.01 s, the slowest 0.3 s."""
MEMORY = 2**30
"""Bytes of address space of the process."""


@functools.lru_cache(1000)
def _parsed(latex: str) -> list:
    settings = {"extraction_config": (LatexExtractionConfig(),), "parsing_timeout": None, "fallback_mode": "no_fallback"}
    return parse(f"${latex}$", extraction_mode="first_match", **settings)


def main() -> None:
    """Answers requests until there are no more."""
    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S)
        try:
            equal = bool(verify(_parsed(request["gold"]), _parsed(request["answer"]), timeout_seconds=None))
        except Exception:  # sympy raises anything
            equal = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        sys.stdout.write(json.dumps({"equal": equal}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
