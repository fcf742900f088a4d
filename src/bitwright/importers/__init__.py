"""Checkpoints of the research codes, read as data and turned into our models.

imported = import_checkpoint("nin.best.pth.tar", "xnor-net")
bw.save(imported.model, "nin.safetensors")
"""

from __future__ import annotations

import os
from pathlib import Path

from bitwright.errors import unknown
from bitwright.importers.mapping import Imported, MappedKey
from bitwright.runs.pth import read_checkpoint

__all__ = ["Imported", "MappedKey", "import_checkpoint", "sources"]


def sources() -> tuple[str, ...]:
    """Codes whose checkpoints can be read.

    >>> sources()
    ('xnor-net', 'network-compression', 'pca-hybrid', 'dnn-gating')
    """
    return ("xnor-net", "network-compression", "pca-hybrid", "dnn-gating")


def import_checkpoint(path: str | os.PathLike[str], source: str, model: str | None = None) -> Imported:
    """Reads an old checkpoint and returns our model with its weights, in eval mode.

    source   one of `sources()`
    model    which net (xnor-net), method (network-compression, dnn-gating) or choice of layers (pca-hybrid) of that code
             it is; told from the keys where not given

    Nothing in the file is run. Errors: `InputError` for a file that is missing, damaged or asks to run code,
    and for every key or shape that does not belong to the net.
    """
    where = Path(path).name
    if source not in sources():
        raise unknown(f"import {where}: unknown source {source!r}", source, sources(), code="import-source")
    from bitwright.importers import dnn_gating, network_compression, pca_hybrid, xnor_net

    readers = {
        "xnor-net": xnor_net, "network-compression": network_compression, "pca-hybrid": pca_hybrid, "dnn-gating": dnn_gating,
    }  # fmt: skip
    return readers[source].from_checkpoint(read_checkpoint(path), where, model)
