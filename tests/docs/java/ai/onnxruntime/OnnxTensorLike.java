package ai.onnxruntime;

/** See OrtException. */
public abstract class OnnxTensorLike implements OnnxValue {}
