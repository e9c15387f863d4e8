package ai.onnxruntime;

import java.util.Map;

/** See OrtException. */
public class OrtSession implements AutoCloseable {
  public Result run(Map<String, ? extends OnnxTensorLike> inputs) throws OrtException {
    throw new UnsupportedOperationException();
  }

  @Override
  public void close() throws OrtException {}

  public static class SessionOptions implements AutoCloseable {
    public void registerCustomOpLibrary(String path) throws OrtException {}

    @Override
    public void close() {}
  }

  public static class Result implements AutoCloseable {
    public OnnxValue get(int index) {
      throw new UnsupportedOperationException();
    }

    @Override
    public void close() {}
  }
}
