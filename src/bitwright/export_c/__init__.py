"""A packed net as one C99 file: `bw.export.c`.

`plan.py` says where each value lies in memory, `layers.py`, `codes.py`, `floats.py` and `moves.py` write the C of each operator,
`kernels/` holds the C functions they call, one a file, and `to_c.py` puts the text together and checks it.
"""

from __future__ import annotations

from bitwright.export_c.to_c import CReport as CReport
from bitwright.export_c.to_c import c as c

__all__ = ["CReport", "c"]
