"""What layer-wise compression shares: the statistics of what each layer reads, and the linear algebra on them.

geometry   the rows that a layer multiplies its weight with        forwards   forward passes that stop in front of a layer
stats      `visit_layers`: one layer at a time, its `LayerStats`   linalg     damping, factors, least squares
"""
