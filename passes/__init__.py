"""Graph rewriting passes on onnx_ir models, one file a pass."""
