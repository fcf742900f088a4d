"""Geometry of the charts: from values to places on paper."""
