"""Prefill, decode, sampling: token ids in, token ids out."""
