"""The token-shard format: write, map, verify. Standard library and NumPy only."""
