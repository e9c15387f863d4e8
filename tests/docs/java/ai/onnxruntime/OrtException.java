package ai.onnxruntime;

/** Declaration only, for compiling the example of docs/running.md; as are the others in this folder. */
public class OrtException extends Exception {
  private static final long serialVersionUID = 1L;
}
