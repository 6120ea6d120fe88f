"""Pallas kernels, installed as ``perturbjax.kernels``; each comes with a jnp reference of the same signature."""
