"""The self-pruning notebook's training step, written out over lists: slow, and nothing of torch in it.

784-4000x3-10 in small: linear without bias, tanh, batch norm, in every block and in the output block; then log_softmax and
the negative log likelihood, and Adam on the latents and the norms.
"""

from __future__ import annotations

import math

Matrix = list[list[float]]
EPS = 1e-4  # of the batch norm


class Adam:
    """Of one flat list of numbers."""

    def __init__(self, rate: float, size: int) -> None:
        self.rate, self.time = rate, 0
        self.mean, self.square = [0.0] * size, [0.0] * size

    def step(self, values: list[float], grads: list[float]) -> None:
        self.time += 1
        for i, g in enumerate(grads):
            self.mean[i] = 0.9 * self.mean[i] + 0.1 * g
            self.square[i] = 0.999 * self.square[i] + 0.001 * g * g
            mean = self.mean[i] / (1 - 0.9**self.time)
            square = self.square[i] / (1 - 0.999**self.time)
            values[i] -= self.rate * mean / (math.sqrt(square) + 1e-8)


class Block:
    """Linear, tanh, batch norm of the batch itself."""

    def __init__(self, latent: Matrix, rate: float) -> None:
        self.latent = [list(row) for row in latent]
        self.gain, self.shift = [1.0] * len(latent), [0.0] * len(latent)
        self.adam = [Adam(rate, len(latent) * len(latent[0])), Adam(rate, len(latent)), Adam(rate, len(latent))]

    def forward(self, x: Matrix) -> Matrix:
        saved = [list(row) for row in self.latent]  # the notebook overwrites the parameter ...
        self.latent = [[1.0 if abs(v) >= 0.5 else 0.0 for v in row] for row in self.latent]
        self.x, self.used = x, self.latent
        s = [[sum(a * w for a, w in zip(sample, row, strict=True)) for row in self.latent] for sample in x]
        self.latent = saved  # ... and puts the latent back before the optimizer's step
        self.t = [[math.tanh(v) for v in row] for row in s]
        count = len(x)
        columns = list(zip(*self.t, strict=True))
        means = [sum(c) / count for c in columns]
        self.size = [math.sqrt(sum((v - m) ** 2 for v in c) / count + EPS) for c, m in zip(columns, means, strict=True)]
        self.z = [[(v - m) / s for v, m, s in zip(row, means, self.size, strict=True)] for row in self.t]
        return [[g * v + b for v, g, b in zip(row, self.gain, self.shift, strict=True)] for row in self.z]

    def backward(self, grad: Matrix) -> tuple[Matrix, list[list[float]]]:
        """(gradient of the input, gradients of weight, gain, shift)."""
        count = len(grad)
        of_gain = [sum(g[j] * z[j] for g, z in zip(grad, self.z, strict=True)) for j in range(len(self.gain))]
        of_shift = [sum(g[j] for g in grad) for j in range(len(self.gain))]
        of_s: Matrix = []
        for g, z, t in zip(grad, self.z, self.t, strict=True):
            row = []
            for j, (v, norm, act) in enumerate(zip(g, z, t, strict=True)):
                of_t = self.gain[j] / self.size[j] * (v - of_shift[j] / count - norm * of_gain[j] / count)
                row.append(of_t * (1 - act * act))
            of_s.append(row)
        of_w = [
            [sum(s[j] * x[i] for s, x in zip(of_s, self.x, strict=True)) for i in range(len(self.used[0]))]
            for j in range(len(self.used))
        ]
        of_x = [
            [sum(s[j] * self.used[j][i] for j in range(len(self.used))) for i in range(len(self.used[0]))] for s in of_s
        ]
        return of_x, [[v for row in of_w for v in row], of_gain, of_shift]

    def update(self, grads: list[list[float]]) -> None:
        flat = [v for row in self.latent for v in row]
        self.adam[0].step(flat, grads[0])
        width = len(self.latent[0])
        clipped = [min(1.0, max(0.0, v)) for v in flat]
        self.latent = [clipped[i : i + width] for i in range(0, len(flat), width)]
        self.adam[1].step(self.gain, grads[1])
        self.adam[2].step(self.shift, grads[2])


class Notebook:
    """A net of blocks from their first latents."""

    def __init__(self, latents: list[Matrix], rate: float) -> None:
        self.blocks = [Block(latent, rate) for latent in latents]

    @property
    def latents(self) -> list[Matrix]:
        return [block.latent for block in self.blocks]

    def step(self, x: Matrix, target: list[int]) -> float:
        """One step; the loss before it."""
        for block in self.blocks:
            x = block.forward(x)
        loss, grad = 0.0, []
        for row, t in zip(x, target, strict=True):
            top = max(row)
            total = sum(math.exp(v - top) for v in row)
            loss -= row[t] - top - math.log(total)
            grad.append([(math.exp(v - top) / total - (j == t)) / len(target) for j, v in enumerate(row)])
        found = []
        for block in reversed(self.blocks):
            grad, grads = block.backward(grad)
            found.append((block, grads))
        for block, grads in found:
            block.update(grads)
        return loss / len(target)
