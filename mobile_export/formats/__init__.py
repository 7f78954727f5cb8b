"""What is written: Core ML packages, the older neural networks, ExecuTorch programs, ONNX graphs and their int8 forms."""
