package ai.onnxruntime;

import java.nio.FloatBuffer;

/** See OrtException. */
public class OnnxTensor extends OnnxTensorLike {
  public static OnnxTensor createTensor(OrtEnvironment env, Object data) throws OrtException {
    throw new UnsupportedOperationException();
  }

  public static OnnxTensor createTensor(OrtEnvironment env, FloatBuffer data, long[] shape) throws OrtException {
    throw new UnsupportedOperationException();
  }

  @Override
  public Object getValue() throws OrtException {
    throw new UnsupportedOperationException();
  }

  @Override
  public void close() {}
}
