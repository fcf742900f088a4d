"""Engines: packed inference."""
