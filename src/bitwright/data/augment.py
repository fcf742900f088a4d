"""Shift and mirror a whole batch with one gather: no loop over images, no float before it is needed."""

import torch
from torch import Tensor
from torch.nn import functional as F


def crop_flip(x: Tensor, shift: Tensor, mirror: Tensor, pad: int, size: int | None = None) -> Tensor:
    """Pad with `pad` zeros on each side, cut out at `shift`, mirror where asked.

    x [B, C, H, W], shift [B, 2] (row and column where the crop begins), mirror bool [B]. The crop is size x size,
    by default of the old size; then shift = pad leaves the image where it was.

    >>> x = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    >>> crop_flip(x, torch.tensor([[0, 1]]), torch.tensor([True]), pad=1).tolist()
    [[[[0, 0], [2, 1]]]]
    >>> crop_flip(x, torch.tensor([[1, 0]]), torch.tensor([False]), pad=0, size=1).tolist()
    [[[[3]]]]
    """
    count, channels, height, width = x.shape
    padded = (F.pad(x, (pad, pad, pad, pad)) if pad else x).flatten(2)  # [B, C, (H + 2 pad)(W + 2 pad)]
    tall, wide = (height, width) if size is None else (size, size)
    rows = shift[:, 0:1] + torch.arange(tall, device=x.device)  # [B, H]
    columns = torch.arange(wide, device=x.device)
    columns = shift[:, 1:2] + torch.where(mirror[:, None], wide - 1 - columns, columns)  # [B, W]
    index = rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]  # [B, H, W]
    return padded.gather(2, index.flatten(1)[:, None].expand(-1, channels, -1)).view(count, channels, tall, wide)
