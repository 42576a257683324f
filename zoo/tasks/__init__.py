"""From the log to labelled rows, and nothing else."""
