"""Networks as files for production: ONNX, ONNX with 8-bit integers, and StableHLO, each compared with the network."""
