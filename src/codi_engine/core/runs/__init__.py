"""Runs that are there: cells, activations and texts read back, analyses, their figures, exports."""
