"""Measures the speed of scoring: what is run, how it is timed, and where the time goes."""
