"""V-Pretraining (Ke & Fanti, arXiv 2601.22108): verified feedback steers further pretraining, which never trains on it."""
