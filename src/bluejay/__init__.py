"""Bluejay: the whole GPT-J system on JAX."""
