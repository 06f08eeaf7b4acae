"""What runs the exported graphs: ONNX Runtime on the CPU, TensorRT on GPUs, behind one `Engine`."""
