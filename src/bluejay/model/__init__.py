"""The GPT decoder: config, presets, parameter specs, forward, cache."""
