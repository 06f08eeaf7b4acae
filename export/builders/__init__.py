"""From an ONNX file to an engine, with TensorRT-RTX or TensorRT."""
