"""What leaves PyTorch: `bw.export.onnx`, `bw.export.qonnx`, `bw.export.c`, `bw.export.circuit`. Each export is run and compared before it is called done."""

from __future__ import annotations

from bitwright.export.to_circuit import CircuitReport as CircuitReport
from bitwright.export.to_circuit import circuit as circuit
from bitwright.export.to_onnx import ExportReport as ExportReport
from bitwright.export.to_onnx import onnx as onnx
from bitwright.export.to_qonnx import QonnxReport as QonnxReport
from bitwright.export.to_qonnx import qonnx as qonnx
from bitwright.export_c import CReport as CReport
from bitwright.export_c import c as c

__all__ = ["CReport", "CircuitReport", "ExportReport", "QonnxReport", "c", "circuit", "onnx", "qonnx"]
