"""What leaves PyTorch: `bw.export.onnx`. Each export is run and compared before it is called done."""

from __future__ import annotations

from bitwright.export.to_onnx import ExportReport as ExportReport
from bitwright.export.to_onnx import onnx as onnx

__all__ = ["ExportReport", "onnx"]
