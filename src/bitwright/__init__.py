"""bitwright: low-bit, pruned and gated neural networks that are really small and really fast.

    analyze -> Recipe -> apply -> train (any loop) -> convert (packed, verified) -> cost / bench / report / export
"""

from bitwright import data, models, nn
from bitwright.engine.files import load, save
from bitwright.errors import BitwrightWarning, InputError
from bitwright.parts import make_part, parts
from bitwright.transforms import Recipe, apply, attach, calibrate, param_groups, penalty, recipes
from bitwright.types import Coded, LayerInfo, PartInfo

__version__ = "0.1.0"
