"""Weights that are computed in forward become plain ones."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm


def bake(model: nn.Module) -> None:
    """Weights that are computed from other parameters (weight and spectral norm, pruning masks) become plain ones.

    In evaluation such a weight is a constant. In place.
    """
    for module in list(model.modules()):
        for key in list(getattr(module, "parametrizations", {}) if parametrize.is_parametrized(module) else {}):
            parametrize.remove_parametrizations(module, key, leave_parametrized=True)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
            elif isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, str(hook._tensor_name))
