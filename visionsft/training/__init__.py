"""Training: strategies, tasks and the fitting of a run."""
