"""Quantize multimodal language models with what they look at, and measure what it cost."""

__version__ = "0.1.0"
