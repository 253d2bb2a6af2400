"""Named functions, each returning one complete run: what to train, on what, and what to expect."""
