"""Slow, obvious transcriptions of the papers' formulas, in float64. They share no code with the library."""
