"""Mesh construction and the rules that lay logical axes over it."""
