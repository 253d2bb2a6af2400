"""Array functions that every model shares: contract, norms, rotary, attention, activations."""
