"""File headers, the ggml library, tables and the environment; no knowledge of quantization."""
