"""The law of training: a net that uses the part learns."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitwright.testing.case import Case, after_steps, penalties
from bitwright.testing.law import finite, law, require
from bitwright.transforms.attach import bind, param_groups

RATES = (1e-2, 1e-1)  # the second for latents that must cross half of [0, 1] before their weight changes


@law("a net of two such layers learns 64 samples, at one of two rates", slow=True)
def learns(case: Case) -> None:
    x, target = torch.rand(64, 3, 5, 5) * 2 - 1, torch.randint(0, 4, (64,))
    said: list[str] = []
    for rate in RATES:
        losses = _train(case, x, target, rate)
        first, last = sum(losses[:3]) / 3, sum(losses[-3:]) / 3
        if last < 0.8 * first:
            return
        said.append(f"loss {first:.3f} -> {last:.3f} at rate {rate}")
    require(False, ", ".join(said))


def _train(case: Case, x: Tensor, target: Tensor, rate: float) -> list[float]:
    """Thirty losses."""
    net = nn.Sequential(
        case.layer(channels=3, out=8),
        nn.BatchNorm2d(8),
        case.layer(channels=8, out=8),
        nn.BatchNorm2d(8),
        nn.Flatten(),
    )
    head = nn.Linear(8 * 25, 4)
    for p in head.parameters():
        p.requires_grad_(False)  # a head that learns would hide layers that do not
    optimizer = torch.optim.AdamW(param_groups(net, rate, 0.0))  # Adam, unless a part has its own decay
    bind(net, optimizer)
    losses: list[float] = []
    for _ in range(30):
        loss = F.cross_entropy(head(net(x)), target)
        optimizer.zero_grad()
        (loss + penalties(net)).backward()
        optimizer.step()
        after_steps(net)
        losses.append(loss.item())
        require(finite(loss), f"the loss is {loss.item()} at step {len(losses)}")
    return losses
