"""Weight quantizers, one number at a time: value of the quantized weights, and gradient of the latents.

Every function takes `w` and `g` (gradient of the loss by the quantized weights) as nested lists, one list
per filter, and returns (value, gradient of w) in the same shape; more where the method has own parameters.
"""

from __future__ import annotations

import math

Rows = list[list[float]]


def plus_minus(v: float) -> float:
    """The sign that has no zero."""
    return -1.0 if v < 0 else 1.0


def average(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


def binary(w: Rows, g: Rows, shared: bool = False) -> tuple[Rows, Rows]:
    """Formula (1): scale = mean magnitude of the group, its gradient goes through the scale and the sign.

    group   one filter, or (shared) the whole tensor
    d w_i = scale g_i [ |w_i| <= 1 ] + plus_minus(w_i) / n * sum over the group of g_j plus_minus(w_j)
    """
    value, grad = [], []
    for o, (row, g_row) in enumerate(zip(w, g, strict=True)):
        group = [v for r in w for v in r] if shared else w[o]
        g_group = [v for r in g for v in r] if shared else g[o]
        scale = average([abs(v) for v in group])
        pulled = math.fsum(gv * plus_minus(v) for v, gv in zip(group, g_group, strict=True)) / len(group)
        value.append([scale * plus_minus(v) for v in row])
        grad.append(
            [(scale * gv if -1 <= v <= 1 else 0.0) + plus_minus(v) * pulled for v, gv in zip(row, g_row, strict=True)]
        )
    return value, grad


def centered_binary(w: Rows, g: Rows, inputs: int) -> tuple[Rows, Rows]:
    """XNOR with centering in the graph: u = clip(w - mean over the inputs, -1, 1), then formula (1) on u.

    A row of w is [inputs x positions] flattened; the mean is over the inputs at one position.
    The clip passes a gradient on [-1, 1] only; the mean takes its average away from each of its members.
    """
    u, inside = [], []
    for row in w:
        positions = len(row) // inputs
        means = [average([row[i * positions + p] for i in range(inputs)]) for p in range(positions)]
        centered = [row[k] - means[k % positions] for k in range(len(row))]
        inside.append([1.0 if -1 <= c <= 1 else 0.0 for c in centered])
        u.append([min(1.0, max(-1.0, c)) for c in centered])
    value, grad_u = binary(u, g)
    grad = []
    for row, mask in zip(grad_u, inside, strict=True):
        passed = [d * m for d, m in zip(row, mask, strict=True)]
        positions = len(row) // inputs
        shares = [average([passed[i * positions + p] for i in range(inputs)]) for p in range(positions)]
        grad.append([passed[k] - shares[k % positions] for k in range(len(row))])
    return value, grad


def project(w: Rows, inputs: int) -> Rows:
    """XNOR after a step: take the mean over the inputs away (unless there is but one), clip to [-1, 1]."""
    out = []
    for row in w:
        positions = len(row) // inputs
        means = [average([row[i * positions + p] for i in range(inputs)]) for p in range(positions)]
        moved = row if inputs == 1 else [row[k] - means[k % positions] for k in range(len(row))]
        out.append([min(1.0, max(-1.0, v)) for v in moved])
    return out


def bireal(w: Rows, g: Rows) -> tuple[Rows, Rows]:
    """Scale detached; the gradient is that of clip(w, -1, 1), closed at the ends, without the scale."""
    value = [[average([abs(v) for v in row]) * plus_minus(v) for v in row] for row in w]
    grad = [[gv if -1 <= v <= 1 else 0.0 for v, gv in zip(r, gr, strict=True)] for r, gr in zip(w, g, strict=True)]
    return value, grad


def dorefa(w: Rows, g: Rows, bits: int) -> tuple[Rows, Rows]:
    """k = 1: E plus_minus(w), E over the layer, gradient g. k > 1: 2 q_k(tanh w / (2 M) + 1/2) - 1.

    M is the largest |tanh w| of the layer, taken as fixed. A layer of zeros has no M: value 0, gradient g.
    """
    everything = [v for row in w for v in row]
    if bits == 1:
        scale = average([abs(v) for v in everything])
        return [[scale * plus_minus(v) for v in row] for row in w], [list(row) for row in g]
    largest = max(abs(math.tanh(v)) for v in everything)
    if largest == 0:
        return [[0.0 for _ in row] for row in w], [list(row) for row in g]
    n = 2**bits - 1
    value = [[2 * round((math.tanh(v) / (2 * largest) + 0.5) * n) / n - 1 for v in row] for row in w]
    grad = [
        [gv * (1 - math.tanh(v) ** 2) / largest for v, gv in zip(r, gr, strict=True)]
        for r, gr in zip(w, g, strict=True)
    ]
    return value, grad


def ternary(w: Rows, g: Rows, p: float, n: float, share: float = 0.05) -> tuple[Rows, Rows, float, float]:
    """TTQ: (value, gradient of the latents, of p, of n). Strict comparisons with share * largest magnitude.

    latents: p g above, g in the middle, n g below; p: sum of g above; n: minus the sum of g below.
    """
    d = share * max(abs(v) for row in w for v in row)
    value, grad, grad_p, grad_n = [], [], [], []
    for row, g_row in zip(w, g, strict=True):
        value.append([p if v > d else -n if v < -d else 0.0 for v in row])
        grad.append([gv * (p if v > d else n if v < -d else 1.0) for v, gv in zip(row, g_row, strict=True)])
        grad_p += [gv for v, gv in zip(row, g_row, strict=True) if v > d]
        grad_n += [-gv for v, gv in zip(row, g_row, strict=True) if v < -d]
    return value, grad, math.fsum(grad_p), math.fsum(grad_n)
