"""The processes of a run: joining, failure, preemption."""
