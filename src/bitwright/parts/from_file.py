"""Parts whose tensors take the shapes that a file has."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class ShapesFromFile(nn.Module):
    """Loads tensors of other shapes than its own.

    A part that is built without a layer does not know the shape of the weight; its tensors have no dimensions until a state
    dict brings them. A part with a shape keeps it.

    from_file   names of the tensors; the first one has no dimensions exactly where the part has no layer
    grown       names of tensors that are empty at first and later as large as the weight: always as the file has them
    """

    from_file: ClassVar[tuple[str, ...]] = ()
    grown: ClassVar[tuple[str, ...]] = ()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:  # torch gives all of them by place
        state_dict, prefix = args[:2]
        alone = bool(self.from_file) and getattr(self, self.from_file[0]).dim() == 0
        for name in (*self.from_file, *self.grown) if alone else self.grown:
            saved, own = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(saved, Tensor) and saved.shape != own.shape:
                fresh = torch.empty_like(saved, device=own.device)
                setattr(self, name, nn.Parameter(fresh) if isinstance(own, nn.Parameter) else fresh)
        super()._load_from_state_dict(*args, **kwargs)
