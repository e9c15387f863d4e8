"""Storage: codes (weight to word), read-outs (read word to weight), and the packing of words into bits."""

from __future__ import annotations

from qtaml_onnx.storage.channel_optimized import design_channel_optimized
from qtaml_onnx.storage.codes import Code, best_mask, uniform_code
from qtaml_onnx.storage.readout import ErrorMoments, ReadOut, WordSums, design_readout, error_moments, word_sums

__all__ = [
    "Code",
    "ErrorMoments",
    "ReadOut",
    "WordSums",
    "best_mask",
    "design_channel_optimized",
    "design_readout",
    "error_moments",
    "uniform_code",
    "word_sums",
]
