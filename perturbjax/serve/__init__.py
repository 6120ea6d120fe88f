"""A finished run as an OpenAI-compatible server: what answers, in batches of static shapes, behind limits."""
