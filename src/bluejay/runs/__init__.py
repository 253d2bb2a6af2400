"""Composition root: load a model, and the jobs that the command line names."""
