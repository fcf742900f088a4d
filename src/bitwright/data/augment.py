"""Shift and mirror a whole uint8 batch with one gather: no loop over images, no float before it is needed."""

import torch
from torch import Tensor
from torch.nn import functional as F


def crop_flip(x: Tensor, shift: Tensor, mirror: Tensor, pad: int) -> Tensor:
    """Pad with `pad` zeros on each side, crop back to the old size at `shift`, mirror where asked.

    x [B, C, H, W], shift [B, 2] in 0..2*pad (row and column where the crop begins), mirror bool [B].
    shift = pad leaves the image where it was.

    >>> x = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
    >>> crop_flip(x, torch.tensor([[0, 1]]), torch.tensor([True]), pad=1).tolist()
    [[[[0, 0], [2, 1]]]]
    """
    channels, height, width = x.shape[1:]
    padded = F.pad(x, (pad, pad, pad, pad)).flatten(2)  # [B, C, (H + 2 pad)(W + 2 pad)]
    rows = shift[:, 0:1] + torch.arange(height, device=x.device)  # [B, H]
    columns = torch.arange(width, device=x.device)
    columns = shift[:, 1:2] + torch.where(mirror[:, None], width - 1 - columns, columns)  # [B, W]
    index = rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]  # [B, H, W]
    return padded.gather(2, index.flatten(1)[:, None].expand(-1, channels, -1)).view(x.shape)
