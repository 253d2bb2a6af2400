"""Training: a pure step over any loss, its optimizer and schedule, a short loop, callbacks."""
