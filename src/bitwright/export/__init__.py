"""What leaves PyTorch: `bw.export.onnx`, `bw.export.c`. Each export is run and compared before it is called done."""

from __future__ import annotations

from bitwright.export.to_onnx import ExportReport as ExportReport
from bitwright.export.to_onnx import onnx as onnx
from bitwright.export_c import CReport as CReport
from bitwright.export_c import c as c

__all__ = ["CReport", "ExportReport", "c", "onnx"]
