/* Reads weights out of the memory image of a hardened model, faults and all.
 *
 * C99, freestanding but for <string.h> (memcpy): no heap, no stdio, no global state. A model's constants are in the
 * qtaml_model.h and qtaml_model.c beside its image; all are `const` and may stay in ROM, which must be safe. The image
 * may be faulty. Weights are equal bit for bit to what the ONNX model computes from the same stored words: compile
 * without fused multiply-add (gcc and clang: -ffp-contract=off).
 *
 * Of each tensor: first qtaml_correct, if the model has a parity image; then qtaml_read_weights, and qtaml_read_bias
 * where the bias corrects itself. Format: docs/firmware.md of qtaml-onnx.
 */
#ifndef QTAML_READOUT_H
#define QTAML_READOUT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define QTAML_FORMAT_VERSION 1

typedef enum {
  QTAML_OK = 0,
  QTAML_BAD_ARGUMENT,  /* a null pointer, a tensor that the model has not, or a range beyond its end */
  QTAML_BAD_WORKSPACE, /* smaller than QTAML_WORKSPACE_BYTES, or not aligned as int16_t */
  QTAML_NOT_INTEGER,   /* qtaml_read_codes on a tensor of float weights */
  QTAML_NO_BIAS,       /* qtaml_read_bias on a layer whose bias does not correct itself */
  QTAML_INTEGER_BIAS,  /* qtaml_read_bias on a bias of 32-bit integers, and the other way round */
  QTAML_ONE_WORD       /* qtaml_read_second_words on a tensor of one word a weight */
} qtaml_status;

/* The image: files of these names, in memory. Pointers to images that a model has not are null. The constants must be
 * in safe memory. */
typedef struct {
  const uint8_t *bulk;
  uint8_t *protected_bits;
  uint8_t *parity;
  const uint8_t *small_numbers; /* small.bin */
  const uint8_t *constants;
} qtaml_image;

/* What qtaml_correct did; it adds to what the structure holds. */
typedef struct {
  uint64_t corrected_bits; /* stored bits set right, parity bits included */
  uint64_t failed_blocks;  /* code words with errors that were detected, but not corrected */
} qtaml_corrections;

/* Numbers kept as half precision or as float: one pointer is null. */
typedef struct {
  const uint16_t *half;
  const float *single;
} qtaml_numbers;

typedef enum {
  QTAML_AFFINE = 0,       /* (word - offset) * scale */
  QTAML_TABLE = 1,        /* table[word] * scale, or table[word + (group << bits)] * scale */
  QTAML_DEQUANTIZE = 2,   /* (word - zero_point) * step */
  QTAML_INTEGER_TABLE = 3, /* (codes[word] - zero_point) * step */
  QTAML_INTEGER_GRID = 4,  /* (integer - zero_point) * step, integer = floor(table[word] * scale + zero_point + 1/2),
                              at least `least` and at most `largest` */
  QTAML_TWO_WORDS = 5      /* mean(word, second word) * scale; see qtaml_pair */
} qtaml_form;

typedef enum {
  QTAML_FLOAT32 = 0,
  QTAML_FLOAT16 = 1,
  QTAML_BFLOAT16 = 2,
  QTAML_FLOAT64 = 3,
  QTAML_INT8 = 4, /* this and the following ones of small tensors alone */
  QTAML_UINT8 = 5,
  QTAML_INT16 = 6,
  QTAML_UINT16 = 7,
  QTAML_INT32 = 8
} qtaml_type;

/* Element i of the weights uses value (i / inner) % count of a channel-wise constant. */
typedef struct {
  qtaml_numbers values;
  uint32_t count;
  uint32_t inner;
} qtaml_channels;

/* Steps (float) and zero points (int32_t) in constants.bin, little-endian: what integers stand for where blocks of them
 * have steps, or channels have zero points, of their own. Element i is at a = i / inner % extent along an axis, and has
 * number a, or, with blocks, (i / (inner * extent) * blocks + a / block) * inner + i % inner, blocks being
 * ceil(extent / block). */
typedef struct {
  uint64_t steps; /* bytes */
  uint64_t zero_points;
  uint32_t inner;
  uint32_t extent;
  uint32_t block; /* 0: no blocks */
} qtaml_grid;

/* Groups of channels with codes of their own: their tables follow each other in the table of the tensor. Element i is of
 * group channels[i / inner % count]. */
typedef struct {
  const uint8_t *channels;
  const uint16_t *null_words; /* of each group: what a word of wrong parity is read as */
  uint32_t count;
  uint32_t inner;
} qtaml_groups;

/* The read-out of two words a weight, u and v, which are the halves of one long word of B bits: the mean of the weights
 * that were stored, over all cells c,
 *
 *     sum of share[c] * mean[c] * P(c, u, v) / sum of share[c] * P(c, u, v),   P = stay0^a * flip01^b * flip10^c * stay1^d
 *
 * with as many factors as the cell's long word has zeros read as 0 and as 1, and ones read as 0 and as 1. In double
 * precision, then rounded to float. Of long words whose rounding depends on the order of the sums, of which there are
 * a few or none, `listed_values` has the result. */
typedef struct {
  const uint16_t *first; /* words of each cell */
  const uint16_t *second;
  const uint16_t *shares; /* half precision */
  const uint16_t *means;
  const double *stay0; /* powers 0 to B of the probability that a zero is read as 0, and so on */
  const double *flip01;
  const double *flip10;
  const double *stay1;
  const uint32_t *listed; /* ascending */
  const float *listed_values;
  uint32_t cells;
  uint32_t listed_count;
  uint8_t second_bits; /* length of the second word; of the first one it is `bits` of the tensor */
} qtaml_pair;

/* A tensor whose output channels are stored in parts, each a qtaml_tensor. Element i is of channel i / inner % extent;
 * that is number places[channel] of the channels of part owners[channel]. */
typedef struct {
  const uint32_t *shape; /* of the whole; its rank is that of the parts */
  const uint16_t *owners;
  const uint16_t *places;
  uint32_t size;  /* weights */
  uint32_t first; /* the first part among the model's tensors; the others follow */
  uint32_t parts;
  uint32_t extent;
  uint32_t inner;
} qtaml_whole;

/* bias = target - sum of weight * mean_input * coverage; output o owns the elements (outer * outputs + o) * inner + j. */
typedef struct {
  const float *target;
  uint32_t outputs;
  uint32_t inner;
  const uint16_t *mean_input; /* of element i: (i / mean_inner) % means, from means * (i / group_size) on */
  uint32_t means;
  uint32_t mean_inner;
  uint32_t group_size;
  const uint16_t *coverage; /* of element i: i % taps; null where all are 1 */
  uint32_t taps;
  uint8_t is_integer; /* a sum of integers less their zero points, rounded to 32 bits: qtaml_read_integer_bias */
} qtaml_bias;

typedef struct {
  const char *name;
  const uint32_t *shape;
  uint32_t rank;
  uint32_t size; /* weights */
  uint8_t bits;  /* word length; of two words a weight, of the first */
  uint8_t is_signed;
  uint8_t form; /* qtaml_form */
  uint8_t type; /* qtaml_type, to which weights are rounded */
  uint8_t exposed_bits;
  uint8_t protected_count;
  uint16_t protected_planes; /* bit mask */
  uint16_t null_word;        /* what a word of wrong parity is read as, where there are no groups */
  int32_t zero_point;
  int32_t least; /* integers of a quantised tensor */
  int32_t largest;
  uint64_t bulk_offset; /* bytes; of the others too */
  uint64_t protected_offset;
  uint64_t parity_offset;
  uint64_t second_offset; /* of second words, in the bulk image */
  float offset;
  qtaml_channels scales;
  qtaml_channels input_scales;
  qtaml_channels steps; /* of a quantised tensor: what its integers are multiplied by in the model */
  qtaml_numbers table;
  const int32_t *codes;
  const qtaml_bias *bias;
  const qtaml_grid *grid; /* in the place of zero_point and steps; null for these */
  const qtaml_groups *groups; /* null where all channels have one code */
  const qtaml_pair *pair;     /* null where weights have one word each */
  const qtaml_whole *whole;   /* of a part of a tensor; null of a whole one */
} qtaml_tensor;

/* A tensor of small.bin, such as a bias, a norm or a scale: numbers of one type, of which each bit is stored several
 * times and read by majority. Byte b of number n of copy c is at offset + (c * numbers + n) * bytes + b. */
typedef struct {
  const char *name;
  const uint32_t *shape;
  uint32_t rank;
  uint32_t size; /* numbers of this tensor, from `first` on */
  uint32_t first;
  uint32_t numbers; /* of a copy */
  uint64_t offset;
  uint8_t copies;
  uint8_t bytes; /* a number */
  uint8_t type;  /* qtaml_type */
} qtaml_small;

typedef enum {
  QTAML_PLAIN = 0, /* protected bits are safe by themselves: no parity */
  QTAML_REPETITION = 1,
  QTAML_SECDED = 2,
  QTAML_BCH = 3,
  QTAML_PARITY = 4,
  QTAML_LDPC = 5
} qtaml_scheme;

typedef struct {
  uint8_t scheme; /* qtaml_scheme */
  uint32_t data_bits;
  uint32_t parity_bits;
  uint32_t copies;         /* repetition */
  const uint16_t *columns; /* SEC-DED: of the parity-check matrix, data bits first */
  uint32_t errors;         /* BCH: corrected a block */
  uint32_t roots;          /* BCH: degree of the generator; bits of parity in use */
  uint32_t order;          /* BCH: 2^m - 1 */
  const uint16_t *power;   /* BCH: alpha^i, i below `order` */
  const uint16_t *log;     /* BCH: the inverse; entry 0 is unused */
  const uint16_t *checks;  /* LDPC: variables of each check */
  uint32_t check_degree;   /* LDPC: variables a check; there are parity_bits checks */
  int32_t prior;           /* LDPC: log-likelihood ratio of a bit as read, in eighths */
} qtaml_code;

typedef struct {
  uint32_t format_version;
  const char *plan_sha256;
  const qtaml_tensor *tensors;
  uint32_t tensor_count;
  uint32_t row_bits;      /* of the bulk image; 0: words are packed without gaps */
  const qtaml_code *code; /* of the protected planes */
  const qtaml_small *small;
  uint32_t small_count;
} qtaml_model;

/* Corrects the protected bits of a tensor in place, and their parity: the images can be written back. A second call
 * changes nothing, unless a block failed. `workspace` may be null where QTAML_WORKSPACE_BYTES is 0; `corrections` may
 * be null. Errors that a code cannot correct are no failure: they are counted, and left as the code leaves them. */
qtaml_status qtaml_correct(const qtaml_model *model, uint32_t tensor, const qtaml_image *image, void *workspace,
                           size_t workspace_bytes, qtaml_corrections *corrections);

/* The stored words `first` to `first + count - 1` of a tensor, in C order, as unsigned integers; where weights have two
 * words each, their first ones. */
qtaml_status qtaml_read_words(const qtaml_model *model, uint32_t tensor, const qtaml_image *image, uint32_t first,
                              uint32_t count, uint16_t *words);

/* Their second ones. */
qtaml_status qtaml_read_second_words(const qtaml_model *model, uint32_t tensor, const qtaml_image *image,
                                     uint32_t first, uint32_t count, uint16_t *words);

/* Weights, in C order; of a part of a tensor, its own channels alone. Those of a model in half precision or bfloat16 are rounded to it, so that qtaml_to_half or
 * qtaml_to_bfloat16 gives them without loss. */
qtaml_status qtaml_read_weights(const qtaml_model *model, uint32_t tensor, const qtaml_image *image, uint32_t first,
                                uint32_t count, float *weights);

/* The same of the whole tensor that `tensor`, if it is a part, is a part of; all parts must have been corrected. */
qtaml_status qtaml_read_whole_weights(const qtaml_model *model, uint32_t tensor, const qtaml_image *image,
                                      uint32_t first, uint32_t count, float *weights);

/* Integers of a quantised tensor, as its DequantizeLinear or integer operator takes them. */
qtaml_status qtaml_read_codes(const qtaml_model *model, uint32_t tensor, const qtaml_image *image, uint32_t first,
                              uint32_t count, int32_t *codes);

/* The bias that corrects itself from the weights as they are read, `tensors[tensor].bias->outputs` values. Its sum is
 * taken in double precision, and differs from that of an inference engine by the engine's rounding. A tensor in parts
 * has its bias with the first one; it is corrected by the weights of all. */
qtaml_status qtaml_read_bias(const qtaml_model *model, uint32_t tensor, const qtaml_image *image, float *bias);

/* The same where the bias is of 32-bit integers, in units of the input's step times the weights'. */
qtaml_status qtaml_read_integer_bias(const qtaml_model *model, uint32_t tensor, const qtaml_image *image,
                                     int32_t *bias);

/* Numbers `first` to `first + count - 1` of a small tensor by majority, `bytes` each, in this processor's order: an
 * array of float, int8_t and so on; of uint16_t for half precision and bfloat16. */
qtaml_status qtaml_read_small(const qtaml_model *model, uint32_t small, const qtaml_image *image, uint32_t first,
                              uint32_t count, void *numbers);

/* Nearest half or bfloat16, ties to even; too large a value becomes an infinity. */
uint16_t qtaml_to_half(float value);
uint16_t qtaml_to_bfloat16(float value);
float qtaml_from_half(uint16_t half);

/* CRC-32 (ISO-HDLC, as zlib's) of an image as it was written: 0 before the first byte, then the last result. */
uint32_t qtaml_crc32(uint32_t crc, const uint8_t *data, size_t size);

#ifdef __cplusplus
}
#endif

#endif
