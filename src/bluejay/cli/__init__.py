"""Turn argv into one call: the only place that prints, exits or parses arguments."""
