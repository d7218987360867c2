"""The run folder: written and read here, nowhere else."""
