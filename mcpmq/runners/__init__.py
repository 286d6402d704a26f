"""Run a model in PyTorch, transformers, ONNX Runtime or llama.cpp, each in a worker process of its own."""
