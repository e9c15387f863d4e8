package ai.onnxruntime;

/** See OrtException. */
public interface OnnxValue extends AutoCloseable {
  Object getValue() throws OrtException;

  @Override
  void close();
}
