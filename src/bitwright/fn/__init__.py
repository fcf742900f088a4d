"""Floor 0: pure tensor functions, no modules, no state."""
