"""Weights as people have them: safetensors or torch.save, wrapped or bare, with the marks of wrappers in their keys."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from torch import Tensor, nn

from bitwright.errors import BitwrightWarning, InputError
from bitwright.runs.pth import plain_key, read_checkpoint

_OF_PART = re.compile(r"(.*)\.(?:w|b|x|g|gate)\..+")


def read_weights(path: Path, who: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, or of a file of torch.save, read as data: nothing in it is run.

    who   heads the messages
    """
    from bitwright.tensors import read_tensors

    if path.is_file():
        with open(path, "rb") as f:
            head = f.read(9)
        if head[:2] in (b"PK", b"\x80\x02") or path.suffix in (".pth", ".pt", ".tar", ".ckpt", ".bin"):
            return read_checkpoint(path, who).tensors, {}
    try:
        return read_tensors(path)
    except InputError as error:
        raise error.reworded(str(error).replace("load ", f"{who} ", 1)) from None


def put_weights(model: nn.Module, tensors: dict[str, Tensor], where: str, code: str = "weights-fit") -> None:
    """Loads weights into the model as it is; all of its keys must be there, in their shapes.

    `module.` and `_orig_mod.` do not count, nor does a first word that all keys of the file share and no key of the model
    has (`model.` of a LightningModule). `num_batches_tracked` may be missing. Keys that nobody takes are named in a
    warning; parts of a trained file that this net does not have are left out without one.
    """
    own = model.state_dict()
    found = _as_in(own, tensors)
    missing = [key for key in own if key not in found and not key.endswith("num_batches_tracked")]
    wrong = [key for key in own if key in found and found[key].shape != own[key].shape]
    left = [key for key in found if key not in own and not _is_of_part(key, model)]
    if missing or wrong:
        first = f"{missing[0]} is missing" if missing else f"{wrong[0]} is {list(found[wrong[0]].shape)}"
        raise InputError(
            f"{where}: do not fit this model: {first} ({len(missing)} missing, {len(wrong)} of other shape"
            + (f", {_listed(left)} left over)" if left else ")"),
            code=code,
            given=where,
        )
    if left:
        warnings.warn(
            f"{where}: keys that this model does not take are left out: {_listed(left)}", BitwrightWarning, stacklevel=3
        )
    model.load_state_dict({key: found.get(key, value) for key, value in own.items()})


def _as_in(own: dict[str, Tensor], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the model's own keys, as far as they can be told."""
    if all(key in own for key in tensors):
        return tensors
    names = {plain_key(key): key for key in own}
    plain = {plain_key(key): value for key, value in tensors.items()}
    if len(plain) < len(tensors) or len(names) < len(own):  # two keys become one: these words mean something here
        return tensors
    first = {key.partition(".")[0] for key in plain}
    if len(first) == 1 and not any(key in names for key in plain):
        plain = {key.partition(".")[2] or key: value for key, value in plain.items()}
    return {names.get(key, key): value for key, value in plain.items()}


def _is_of_part(key: str, model: nn.Module) -> bool:
    found = _OF_PART.fullmatch(key)
    return found is not None and isinstance(
        dict(model.named_modules()).get(found[1]), (nn.Linear, nn.modules.conv._ConvNd)
    )


def _listed(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
