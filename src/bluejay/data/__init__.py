"""Token shards -> batches: packed, shuffled, and a pure function of the step."""
