"""`bw.procedures`: functions of a trained net and data that change the net in place and say what they did."""

# imported at once, not at first use: each file bears the name of its function, and a module that is imported later would
# take the function's place in this namespace
from bitwright.procedures.recalibrate_batchnorm import RecalibratedNorm, Recalibration, recalibrate_batchnorm
from bitwright.procedures.report import Report

__all__ = ["RecalibratedNorm", "Recalibration", "Report", "recalibrate_batchnorm"]
