"""Kernels and searches for NVIDIA GPUs: the loops over columns in Triton, and the scales of ggml's blocks in torch."""
