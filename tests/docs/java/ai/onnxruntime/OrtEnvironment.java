package ai.onnxruntime;

/** See OrtException. */
public final class OrtEnvironment implements AutoCloseable {
  public static synchronized OrtEnvironment getEnvironment() {
    throw new UnsupportedOperationException();
  }

  public OrtSession createSession(String modelPath, OrtSession.SessionOptions options) throws OrtException {
    throw new UnsupportedOperationException();
  }

  @Override
  public void close() {}
}
