"""Serving: the life of a request, HTTP, limits and the interfaces that clients speak."""
