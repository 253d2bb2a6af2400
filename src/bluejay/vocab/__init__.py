"""Tokenizers, token bytes and the joint text + image id layout. No JAX."""
