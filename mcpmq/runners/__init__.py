"""How a model is run to be measured: transformers, ONNX Runtime or llama.cpp, each in a process of its own."""
