"""`bw.procedures`: functions of a trained net and data that change the net in place and say what they did.

A new one: write its file (a function under `@procedure("name")`), add it to the list below, write its test. Then a stage of an
experiment, `procedure = { name = "name", ... }`, and `bitwright compress RUN --method name` run it too.
"""

# imported at once, not at first use: each file has the name of its function, and a module that is imported later would
# replace the function in this namespace
from bitwright.procedures.co_prune import CoPrune, CoPruneReport, co_prune
from bitwright.procedures.fold_batchnorm import fold_batchnorm
from bitwright.procedures.gptq import gptq
from bitwright.procedures.l_dnq import l_dnq
from bitwright.procedures.l_obs import l_obs
from bitwright.procedures.layerwise.bounds import error_bound
from bitwright.procedures.layerwise.progress import Step, watching
from bitwright.procedures.layerwise.work import LayerReport, LayerRow
from bitwright.procedures.magnitude import magnitude
from bitwright.procedures.pca_hybrid import pca_hybrid
from bitwright.procedures.recalibrate_batchnorm import Recalibration, recalibrate_batchnorm
from bitwright.procedures.reconstruct import reconstruct
from bitwright.procedures.registry import Procedure, forget, get, names, procedure
from bitwright.procedures.report import Report
from bitwright.procedures.shrink import ShrinkReport, shrink
from bitwright.procedures.sparse_gpt import sparse_gpt
from bitwright.transforms.norm_statistics import RecalibratedNorm

__all__ = [
    "CoPrune",
    "CoPruneReport",
    "LayerReport",
    "LayerRow",
    "Procedure",
    "RecalibratedNorm",
    "Recalibration",
    "Report",
    "ShrinkReport",
    "Step",
    "co_prune",
    "error_bound",
    "fold_batchnorm",
    "forget",
    "get",
    "gptq",
    "l_dnq",
    "l_obs",
    "magnitude",
    "names",
    "pca_hybrid",
    "procedure",
    "recalibrate_batchnorm",
    "reconstruct",
    "shrink",
    "sparse_gpt",
    "watching",
]
