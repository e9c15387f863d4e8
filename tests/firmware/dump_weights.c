/* Reads an image with the shipped C code and writes everything that the code gives, for a test to compare.
 * Usage: dump_weights DIR OUT. OUT gets, a tensor: words (uint16), second words where there are two a weight, weights
 * (float), codes (int32) of an integer tensor, with the first part of a tensor the weights of all parts, bias (float or
 * int32) where it corrects itself; then small tensors; and at the end corrected bits and failed blocks (uint64). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qtaml_model.h"

static uint8_t *load(const char *folder, const char *name, size_t size) {
  char path[4096];
  uint8_t *data = NULL;
  FILE *file;
  if (!size) return NULL;
  snprintf(path, sizeof path, "%s/%s", folder, name);
  file = fopen(path, "rb");
  data = malloc(size);
  if (!file || !data || fread(data, 1, size, file) != size) exit(3);
  fclose(file);
  return data;
}

static void save(const void *data, size_t size, size_t count, FILE *file) {
  if (count && fwrite(data, size, count, file) != count) exit(4);
}

int main(int argc, char **argv) {
  const qtaml_model *model = &qtaml_stored_model;
  qtaml_image image, as_written;
  qtaml_corrections done = {0, 0}, again = {0, 0};
  void *workspace = QTAML_WORKSPACE_BYTES ? malloc(QTAML_WORKSPACE_BYTES) : NULL;
  FILE *out;
  uint32_t t;
  if (argc != 3) return 2;
  image.bulk = load(argv[1], "bulk.bin", QTAML_BULK_BYTES);
  image.protected_bits = load(argv[1], "protected.bin", QTAML_PROTECTED_BYTES);
  image.parity = load(argv[1], "parity.bin", QTAML_PARITY_BYTES);
  image.small_numbers = load(argv[1], "small.bin", QTAML_SMALL_BYTES);
  image.constants = load(argv[1], "constants.bin", QTAML_CONSTANTS_BYTES);
  as_written = image;
  out = fopen(argv[2], "wb");
  if (!out) return 5;
  for (t = 0; t < model->tensor_count; t++) {
    uint64_t failed = done.failed_blocks;
    if (qtaml_correct(model, t, &image, workspace, QTAML_WORKSPACE_BYTES, &done) != QTAML_OK) return 7;
    if (failed == done.failed_blocks) { /* nothing failed: a second pass has nothing to do */
      if (qtaml_correct(model, t, &image, workspace, QTAML_WORKSPACE_BYTES, &again) != QTAML_OK) return 7;
      if (again.corrected_bits || again.failed_blocks) return 8;
    }
  }
  for (t = 0; t < model->tensor_count; t++) {
    const qtaml_tensor *tensor = &model->tensors[t];
    uint32_t all = tensor->whole ? tensor->whole->size : tensor->size;
    size_t room = all ? all : 1;
    uint16_t *words = malloc(room * sizeof *words);
    float *weights = malloc(room * sizeof *weights);
    int32_t *codes = malloc(room * sizeof *codes);
    uint32_t half = tensor->size / 2;
    if (!words || !weights || !codes) return 6;
    /* in two parts, so that a range that starts in the middle is read as well */
    if (qtaml_read_words(model, t, &image, 0, half, words) != QTAML_OK) return 9;
    if (qtaml_read_words(model, t, &image, half, tensor->size - half, words + half) != QTAML_OK) return 9;
    if (qtaml_read_weights(model, t, &image, 0, half, weights) != QTAML_OK) return 10;
    if (qtaml_read_weights(model, t, &image, half, tensor->size - half, weights + half) != QTAML_OK) return 10;
    save(words, sizeof *words, tensor->size, out);
    if (tensor->form == QTAML_TWO_WORDS) {
      if (qtaml_read_second_words(model, t, &image, 0, half, words) != QTAML_OK) return 23;
      if (qtaml_read_second_words(model, t, &image, half, tensor->size - half, words + half) != QTAML_OK) return 23;
      save(words, sizeof *words, tensor->size, out);
      if (qtaml_read_second_words(model, t, &image, 1, tensor->size, words) != QTAML_BAD_ARGUMENT) return 24;
    } else if (qtaml_read_second_words(model, t, &image, 0, tensor->size, words) != QTAML_ONE_WORD) {
      return 24;
    }
    save(weights, sizeof *weights, tensor->size, out);
    if (tensor->form >= QTAML_DEQUANTIZE && tensor->form <= QTAML_INTEGER_GRID) {
      if (qtaml_read_codes(model, t, &image, 0, tensor->size, codes) != QTAML_OK) return 11;
      save(codes, sizeof *codes, tensor->size, out);
    } else if (qtaml_read_codes(model, t, &image, 0, tensor->size, codes) != QTAML_NOT_INTEGER) {
      return 12;
    }
    half = all / 2;
    if (qtaml_read_whole_weights(model, t, &image, 0, half, weights) != QTAML_OK) return 25;
    if (qtaml_read_whole_weights(model, t, &image, half, all - half, weights + half) != QTAML_OK) return 25;
    if (all && qtaml_read_whole_weights(model, t, &image, 1, all, weights) != QTAML_BAD_ARGUMENT) return 26;
    if (tensor->whole && t == tensor->whole->first) save(weights, sizeof *weights, all, out);
    if (tensor->bias && tensor->bias->is_integer) {
      int32_t *bias = malloc(tensor->bias->outputs * sizeof *bias);
      if (!bias || qtaml_read_integer_bias(model, t, &image, bias) != QTAML_OK) return 13;
      save(bias, sizeof *bias, tensor->bias->outputs, out);
      if (qtaml_read_bias(model, t, &image, weights) != QTAML_INTEGER_BIAS) return 14;
      free(bias);
    } else if (tensor->bias) {
      float *bias = malloc(tensor->bias->outputs * sizeof *bias);
      if (!bias || qtaml_read_bias(model, t, &image, bias) != QTAML_OK) return 13;
      save(bias, sizeof *bias, tensor->bias->outputs, out);
      free(bias);
    } else if (qtaml_read_bias(model, t, &image, weights) != QTAML_NO_BIAS) {
      return 14;
    }
    /* what must be refused */
    if (qtaml_read_words(model, t, &image, 1, tensor->size, words) != QTAML_BAD_ARGUMENT) return 15;
    if (tensor->size && qtaml_read_weights(model, t, &image, 0, tensor->size, NULL) != QTAML_BAD_ARGUMENT) return 16;
    free(words);
    free(weights);
    free(codes);
  }
  if (qtaml_read_words(model, model->tensor_count, &image, 0, 0, NULL) != QTAML_BAD_ARGUMENT) return 17;
  for (t = 0; t < model->small_count; t++) {
    const qtaml_small *small = &model->small[t];
    uint8_t *numbers = malloc((size_t)small->size * small->bytes + 1);
    uint32_t half = small->size / 2;
    if (!numbers || qtaml_read_small(model, t, &image, 0, half, numbers) != QTAML_OK) return 20;
    if (qtaml_read_small(model, t, &image, half, small->size - half, numbers + half * small->bytes) != QTAML_OK) return 20;
    save(numbers, small->bytes, small->size, out);
    if (qtaml_read_small(model, t, &image, 1, small->size, numbers) != QTAML_BAD_ARGUMENT) return 21;
    free(numbers);
  }
  if (qtaml_read_small(model, model->small_count, &image, 0, 0, NULL) != QTAML_BAD_ARGUMENT) return 22;
  if (as_written.bulk != image.bulk) return 18;
  if (QTAML_WORKSPACE_BYTES &&
      qtaml_correct(model, 0, &image, workspace, QTAML_WORKSPACE_BYTES - 1, NULL) == QTAML_OK &&
      model->tensors[0].protected_count)
    return 19;
  save(&done.corrected_bits, sizeof done.corrected_bits, 1, out);
  save(&done.failed_blocks, sizeof done.failed_blocks, 1, out);
  fclose(out);
  free((void *)(uintptr_t)image.bulk);
  free(image.protected_bits);
  free(image.parity);
  free((void *)(uintptr_t)image.small_numbers);
  free((void *)(uintptr_t)image.constants);
  free(workspace);
  return 0;
}
