"""Raw sources to clean, deduplicated, split documents and token shards. No JAX."""
