"""RandOpt (Gan and Isola, arXiv 2603.12228): search, racing, ensemble, vote, controls."""
