"""What others wrote becomes a run."""
