"""Geometry of the charts: from values to positions in the drawing."""
