#include "qtaml_readout.h"

#include <float.h>
#include <string.h>

#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD != 0 && FLT_EVAL_METHOD != 16
#error "weights need plain float arithmetic; on x86 compile with -msse2 -mfpmath=sse"
#endif
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif

#define MAX_ERRORS 64 /* of a BCH code: bounds its scratch memory */
#define LDPC_ROUNDS 200
#define LDPC_LIMIT 127
#define LDPC_DEGREE 16
#define PROTECTED_STREAM 0x9e3779b9u
#define PARITY_STREAM 0x7f4a7c15u

/* ---- Bits ---------------------------------------------------------------------------------------------------------*/

/* A part of an image. `mask` is 0, or the stream that its bytes are XORed with. */
typedef struct {
  uint8_t *bytes;
  uint64_t offset;
  uint32_t mask;
} region;

/* Byte of a fixed pseudo-random stream (the finaliser of MurmurHash3): it makes an asymmetric channel symmetric. */
static uint8_t mask_byte(uint32_t stream, uint64_t address) {
  uint32_t x = (uint32_t)(address / 4) ^ stream;
  x ^= x >> 16;
  x *= 0x85ebca6bu;
  x ^= x >> 13;
  x *= 0xc2b2ae35u;
  x ^= x >> 16;
  return (uint8_t)(x >> (8 * (address % 4)));
}

static unsigned get_bit(const region *from, uint64_t bit) {
  uint64_t address = from->offset + bit / 8;
  uint8_t byte = from->bytes[address];
  if (from->mask) byte ^= mask_byte(from->mask, address);
  return (unsigned)byte >> (bit % 8) & 1u;
}

static void flip_bit(const region *in, uint64_t bit) {
  uint64_t address = in->offset + bit / 8;
  in->bytes[address] = (uint8_t)(in->bytes[address] ^ 1u << (bit % 8));
}

static region protected_region(const qtaml_model *model, const qtaml_tensor *tensor, const qtaml_image *image) {
  region found;
  found.bytes = image->protected_bits;
  found.offset = tensor->protected_offset;
  found.mask = model->code->scheme == QTAML_PLAIN ? 0 : PROTECTED_STREAM;
  return found;
}

static region parity_region(const qtaml_tensor *tensor, const qtaml_image *image) {
  region found;
  found.bytes = image->parity;
  found.offset = tensor->parity_offset;
  found.mask = PARITY_STREAM;
  return found;
}

/* ---- Codes --------------------------------------------------------------------------------------------------------*/

/* One code word: `data` of its data bits are stored, the rest are zeros that nobody keeps. */
typedef struct {
  const qtaml_code *code;
  region protected_bits;
  region parity;
  uint64_t data_start;
  uint64_t parity_start;
  uint32_t data;
} block;

static unsigned data_bit(const block *b, uint32_t i) { return get_bit(&b->protected_bits, b->data_start + i); }
static unsigned parity_bit(const block *b, uint32_t i) { return get_bit(&b->parity, b->parity_start + i); }
static void flip_data(const block *b, uint32_t i) { flip_bit(&b->protected_bits, b->data_start + i); }
static void flip_parity(const block *b, uint32_t i) { flip_bit(&b->parity, b->parity_start + i); }

static void correct_repetition(const qtaml_code *code, const region *bits, const region *copies, uint64_t size,
                               qtaml_corrections *done) {
  uint64_t i;
  uint32_t copy;
  for (i = 0; i < size; i++) {
    unsigned stored = get_bit(bits, i), ones = stored, majority;
    for (copy = 0; copy + 1 < code->copies; copy++) ones += get_bit(copies, copy * size + i);
    majority = 2 * ones > code->copies;
    if (stored != majority) {
      flip_bit(bits, i);
      done->corrected_bits++;
    }
    for (copy = 0; copy + 1 < code->copies; copy++) {
      if (get_bit(copies, copy * size + i) != majority) {
        flip_bit(copies, copy * size + i);
        done->corrected_bits++;
      }
    }
  }
}

static void correct_secded(const block *b, qtaml_corrections *done) {
  const qtaml_code *code = b->code;
  unsigned syndrome = 0;
  uint32_t i;
  for (i = 0; i < b->data; i++)
    if (data_bit(b, i)) syndrome ^= code->columns[i];
  for (i = 0; i < code->parity_bits; i++)
    if (parity_bit(b, i)) syndrome ^= code->columns[code->data_bits + i];
  if (!syndrome) return;
  for (i = 0; i < code->data_bits + code->parity_bits; i++) {
    if (code->columns[i] != syndrome) continue;
    if (i >= b->data && i < code->data_bits) break; /* a bit that is not stored cannot be wrong */
    if (i < code->data_bits)
      flip_data(b, i);
    else
      flip_parity(b, i - code->data_bits);
    done->corrected_bits++;
    return;
  }
  done->failed_blocks++;
}

static unsigned gf_times(const qtaml_code *code, unsigned a, unsigned b) {
  return a && b ? code->power[((uint32_t)code->log[a] + code->log[b]) % code->order] : 0;
}

static unsigned gf_over(const qtaml_code *code, unsigned a, unsigned b) {
  return a ? code->power[((uint32_t)code->log[a] + code->order - code->log[b]) % code->order] : 0;
}

/* Whether any of the syndromes S_1 ... S_2t differs from zero. Powers of alpha: parity bit i at i, data behind. */
static int bch_syndromes(const block *b, uint16_t *syndromes) {
  const qtaml_code *code = b->code;
  uint32_t i, j, any = 0, length = code->roots + b->data;
  memset(syndromes, 0, (2 * code->errors + 1) * sizeof *syndromes);
  for (i = 0; i < length; i++) {
    uint32_t index = i, step = 2 * i % code->order;
    if (!(i < code->roots ? parity_bit(b, i) : data_bit(b, i - code->roots))) continue;
    for (j = 1; j < 2 * code->errors; j += 2) {
      syndromes[j] ^= code->power[index];
      index += step;
      if (index >= code->order) index -= code->order;
    }
  }
  for (j = 1; j <= code->errors; j++) {
    any |= syndromes[j];
    syndromes[2 * j] = (uint16_t)gf_times(code, syndromes[j], syndromes[j]);
  }
  for (; j <= 2 * code->errors; j++) any |= syndromes[j];
  return any != 0;
}

/* Berlekamp and Massey: the shortest recurrence of the syndromes. Its length, of which more than t is a failure. */
static uint32_t bch_locator(const qtaml_code *code, const uint16_t *syndromes, uint16_t *locator) {
  uint16_t before[2 * MAX_ERRORS + 2], kept[2 * MAX_ERRORS + 2];
  uint32_t length = 0, gap = 1, n, i, room = 2 * code->errors + 1;
  unsigned last = 1;
  memset(locator, 0, room * sizeof *locator);
  memset(before, 0, sizeof before);
  locator[0] = before[0] = 1;
  for (n = 0; n < 2 * code->errors; n++) {
    unsigned discrepancy = syndromes[n + 1], factor;
    for (i = 1; i <= length; i++) discrepancy ^= gf_times(code, locator[i], syndromes[n + 1 - i]);
    if (!discrepancy) {
      gap++;
      continue;
    }
    factor = gf_over(code, discrepancy, last);
    memcpy(kept, locator, room * sizeof *locator);
    for (i = gap; i < room; i++) locator[i] = (uint16_t)(locator[i] ^ gf_times(code, factor, before[i - gap]));
    if (2 * length > n) {
      gap++;
      continue;
    }
    length = n + 1 - length;
    memcpy(before, kept, room * sizeof *locator);
    last = discrepancy;
    gap = 1;
  }
  return length;
}

static void correct_bch(const block *b, qtaml_corrections *done) {
  const qtaml_code *code = b->code;
  uint16_t syndromes[2 * MAX_ERRORS + 2], locator[2 * MAX_ERRORS + 2];
  uint32_t position[MAX_ERRORS];
  uint32_t length, found = 0, i, j, size = code->roots + b->data;
  if (!bch_syndromes(b, syndromes)) return;
  length = bch_locator(code, syndromes, locator);
  if (length <= code->errors) {
    for (i = 0; i < size && found < length; i++) { /* Chien: is alpha^-i a root? */
      uint32_t inverse = (code->order - i) % code->order, index = 0;
      unsigned value = 0;
      for (j = 0; j <= length; j++) {
        if (locator[j]) value ^= code->power[((uint32_t)code->log[locator[j]] + index) % code->order];
        index = (index + inverse) % code->order;
      }
      if (!value) position[found++] = i;
    }
  }
  if (length > code->errors || found != length) {
    done->failed_blocks++;
    return;
  }
  for (i = 0; i < found; i++) {
    if (position[i] < code->roots)
      flip_parity(b, position[i]);
    else
      flip_data(b, position[i] - code->roots);
  }
  done->corrected_bits += found;
}

static int parity_fails(const block *b) {
  unsigned sum = parity_bit(b, 0);
  uint32_t i;
  for (i = 0; i < b->data; i++) sum ^= data_bit(b, i);
  return sum != 0;
}

/* 8 ln(1 + exp(-x / 8)), rounded. */
static const uint8_t ldpc_correction[] = {6, 5, 5, 4, 4, 3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0};

static int clip(int value) {
  return value > LDPC_LIMIT ? LDPC_LIMIT : value < -LDPC_LIMIT ? -LDPC_LIMIT : value;
}

static int correction(int x) {
  x = x < 0 ? -x : x;
  return x < (int)sizeof ldpc_correction ? ldpc_correction[x] : 0;
}

/* Log-likelihood ratio of the sum of two bits (Hu et al., IEEE GLOBECOM 2001), in eighths. */
static int box_plus(int a, int b) {
  int x = a < 0 ? -a : a, y = b < 0 ? -b : b, least = x < y ? x : y;
  return clip(((a < 0) != (b < 0) ? -least : least) + correction(a + b) - correction(a - b));
}

/* Sum-product decoding of integer messages: `totals` of variables, `messages` from checks to variables. */
static void correct_ldpc(const block *b, int16_t *totals, int8_t *messages, qtaml_corrections *done) {
  const qtaml_code *code = b->code;
  uint32_t length = code->data_bits + code->parity_bits, degree = code->check_degree, round, i, j, open = 0;
  memset(messages, 0, (size_t)code->parity_bits * degree);
  for (round = 0; round <= LDPC_ROUNDS; round++) {
    for (i = 0; i < length; i++) {
      int bit = i < b->data ? (int)data_bit(b, i) : i < code->data_bits ? 2 : (int)parity_bit(b, i - code->data_bits);
      totals[i] = (int16_t)(bit == 2 ? LDPC_LIMIT : bit ? -code->prior : code->prior);
    }
    for (i = 0; i < code->parity_bits * degree; i++) {
      uint16_t variable = code->checks[i];
      totals[variable] = (int16_t)(totals[variable] + messages[i]);
    }
    for (i = 0, open = 0; i < code->parity_bits && !open; i++)
      for (j = 0; j < degree; j++) open ^= totals[code->checks[i * degree + j]] < 0;
    if (!open || round == LDPC_ROUNDS) break;
    for (i = 0; i < code->parity_bits; i++) {
      const uint16_t *variables = code->checks + (size_t)i * degree;
      int8_t *to = messages + (size_t)i * degree;
      int in[LDPC_DEGREE], behind[LDPC_DEGREE], front = 0;
      for (j = 0; j < degree; j++) in[j] = clip(totals[variables[j]] - to[j]);
      behind[degree - 1] = in[degree - 1];
      for (j = degree - 1; j-- > 1;) behind[j] = box_plus(in[j], behind[j + 1]);
      for (j = 0; j < degree; j++) {
        if (j == 0)
          to[j] = (int8_t)behind[1];
        else
          to[j] = (int8_t)(j + 1 < degree ? box_plus(front, behind[j + 1]) : front);
        front = j == 0 ? in[0] : box_plus(front, in[j]);
      }
    }
  }
  done->failed_blocks += open;
  for (i = 0; i < length; i++) {
    unsigned decided = totals[i] < 0;
    if (i < b->data ? data_bit(b, i) != decided : i >= code->data_bits && parity_bit(b, i - code->data_bits) != decided) {
      if (i < b->data)
        flip_data(b, i);
      else
        flip_parity(b, i - code->data_bits);
      done->corrected_bits++;
    }
  }
}

static block block_of(const qtaml_model *model, const qtaml_tensor *tensor, const qtaml_image *image, uint64_t number) {
  block b;
  uint64_t size = (uint64_t)tensor->size * tensor->protected_count;
  b.code = model->code;
  b.protected_bits = protected_region(model, tensor, image);
  b.parity = parity_region(tensor, image);
  b.data_start = number * b.code->data_bits;
  b.parity_start = number * b.code->parity_bits;
  b.data = size - b.data_start < b.code->data_bits ? (uint32_t)(size - b.data_start) : b.code->data_bits;
  return b;
}

static const qtaml_tensor *tensor_of(const qtaml_model *model, uint32_t tensor, const qtaml_image *image) {
  const qtaml_tensor *found;
  if (!model || !image || model->format_version != QTAML_FORMAT_VERSION || tensor >= model->tensor_count) return NULL;
  found = &model->tensors[tensor];
  if (found->size && found->exposed_bits && !image->bulk) return NULL;
  if (found->size && found->protected_count) {
    if (!image->protected_bits || (model->code->scheme != QTAML_PLAIN && !image->parity)) return NULL;
  }
  if (found->size && found->grid && !image->constants) return NULL;
  return found;
}

qtaml_status qtaml_correct(const qtaml_model *model, uint32_t tensor, const qtaml_image *image, void *workspace,
                           size_t workspace_bytes, qtaml_corrections *corrections) {
  const qtaml_tensor *t = tensor_of(model, tensor, image);
  qtaml_corrections unseen = {0, 0};
  uint64_t size, start, number = 0;
  int16_t *totals = (int16_t *)workspace;
  if (!t) return QTAML_BAD_ARGUMENT;
  if (!corrections) corrections = &unseen;
  size = (uint64_t)t->size * t->protected_count;
  if (model->code->scheme == QTAML_PLAIN || !size) return QTAML_OK;
  if (model->code->scheme == QTAML_REPETITION) {
    region bits = protected_region(model, t, image), copies = parity_region(t, image);
    correct_repetition(model->code, &bits, &copies, size, corrections);
    return QTAML_OK;
  }
  if (model->code->scheme == QTAML_LDPC) {
    size_t variables = (size_t)model->code->data_bits + model->code->parity_bits;
    size_t edges = (size_t)model->code->parity_bits * model->code->check_degree;
    if (!workspace || (uintptr_t)workspace % sizeof(int16_t) || workspace_bytes < 2 * variables + edges)
      return QTAML_BAD_WORKSPACE;
  }
  for (start = 0; start < size; start += model->code->data_bits, number++) {
    block b = block_of(model, t, image, number);
    switch (model->code->scheme) {
      case QTAML_SECDED: correct_secded(&b, corrections); break;
      case QTAML_BCH: correct_bch(&b, corrections); break;
      case QTAML_PARITY: corrections->failed_blocks += (unsigned)parity_fails(&b); break;
      default: correct_ldpc(&b, totals, (int8_t *)(totals + b.code->data_bits + b.code->parity_bits), corrections);
    }
  }
  return QTAML_OK;
}

/* ---- Words --------------------------------------------------------------------------------------------------------*/

/* Up to 16 bits from a bit position on, least significant first. */
static uint32_t take_bits(const region *from, uint64_t position, unsigned count) {
  uint64_t address = from->offset + position / 8, end = from->offset + (position + count + 7) / 8;
  uint32_t bits = 0;
  unsigned at = 0;
  for (; address < end; address++, at += 8) {
    uint8_t byte = from->bytes[address];
    if (from->mask) byte ^= mask_byte(from->mask, address);
    bits |= (uint32_t)byte << at;
  }
  return bits >> (position % 8) & ((1u << count) - 1u);
}

/* Word `index` of those that have `width` bits in the bulk image, from byte `offset` on. */
static uint32_t bulk_bits(const qtaml_model *model, const qtaml_image *image, uint64_t offset, unsigned width,
                          uint32_t index) {
  uint64_t position = (uint64_t)index * width;
  uint64_t address, end;
  uint32_t bits = 0;
  unsigned at = 0;
  if (!width) return 0;
  if (model->row_bits) {
    uint32_t words = model->row_bits / width; /* a row */
    position = (uint64_t)(index / words) * model->row_bits + (uint64_t)(index % words) * width;
  }
  address = offset + position / 8;
  end = offset + (position + width + 7u) / 8;
  for (; address < end; address++, at += 8) bits |= (uint32_t)image->bulk[address] << at;
  return bits >> (position % 8) & ((1u << width) - 1u);
}

static uint32_t group_of(const qtaml_groups *groups, uint32_t element) {
  return groups->channels[element / groups->inner % groups->count];
}

static uint16_t read_word(const qtaml_model *model, const qtaml_tensor *t, const qtaml_image *image, uint32_t index) {
  uint32_t exposed = bulk_bits(model, image, t->bulk_offset, t->exposed_bits, index), safe, word = 0;
  region bits;
  unsigned plane;
  if (!t->protected_count) return (uint16_t)exposed;
  bits = protected_region(model, t, image);
  safe = take_bits(&bits, (uint64_t)index * t->protected_count, t->protected_count);
  if (model->code->scheme == QTAML_PARITY) {
    uint64_t first = (uint64_t)index * t->protected_count, last = first + t->protected_count - 1u, number;
    for (number = first / model->code->data_bits; number <= last / model->code->data_bits; number++) {
      block b = block_of(model, t, image, number);
      if (parity_fails(&b)) return t->groups ? t->groups->null_words[group_of(t->groups, index)] : t->null_word;
    }
  }
  for (plane = 0; plane < t->bits; plane++) {
    uint32_t *from = t->protected_planes >> plane & 1u ? &safe : &exposed;
    word |= (*from & 1u) << plane;
    *from >>= 1;
  }
  return (uint16_t)word;
}

/* Of a tensor of two words a weight, which are not protected. */
static uint16_t read_second_word(const qtaml_model *model, const qtaml_tensor *t, const qtaml_image *image,
                                 uint32_t index) {
  return (uint16_t)bulk_bits(model, image, t->second_offset, t->pair->second_bits, index);
}

/* ---- Weights ------------------------------------------------------------------------------------------------------*/

static uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

static float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

float qtaml_from_half(uint16_t half) {
  uint32_t sign = (uint32_t)(half & 0x8000u) << 16, exponent = half >> 10 & 31u, fraction = half & 1023u;
  if (exponent == 31) return float_of(sign | 0x7f800000u | fraction << 13);
  if (exponent) return float_of(sign | (exponent + 112) << 23 | fraction << 13);
  if (sign) return -((float)fraction * 0x1p-24f);
  return (float)fraction * 0x1p-24f;
}

uint16_t qtaml_to_half(float value) {
  uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
  if (size > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
  if (size >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and more */
  if (size < 0x38800000u) { /* below 2^-14: the sum with 1/2 rounds to multiples of 2^-24 */
    return (uint16_t)(sign | (bits_of(float_of(size) + 0.5f) - 0x3f000000u));
  }
  return (uint16_t)(sign | (size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13);
}

uint16_t qtaml_to_bfloat16(float value) {
  uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
  return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

static float rounded(float value, unsigned type) {
  if (type == QTAML_FLOAT16) return qtaml_from_half(qtaml_to_half(value));
  if (type == QTAML_BFLOAT16) return float_of((uint32_t)qtaml_to_bfloat16(value) << 16);
  return value;
}

static float number(const qtaml_numbers *numbers, uint32_t index) {
  return numbers->half ? qtaml_from_half(numbers->half[index]) : numbers->single[index];
}

static float channel(const qtaml_channels *channels, uint32_t element) {
  return number(&channels->values, element / channels->inner % channels->count);
}

static float looked_up(const qtaml_tensor *t, uint16_t word, uint32_t element) {
  return number(&t->table, t->groups ? word + (group_of(t->groups, element) << t->bits) : word);
}

static int signed_word(const qtaml_tensor *t, uint16_t word) {
  return t->is_signed && word >> (t->bits - 1) ? (int)word - (1 << t->bits) : (int)word;
}

static float scale_of(const qtaml_tensor *t, uint32_t index) {
  float scale = channel(&t->scales, index);
  return t->input_scales.count ? scale * channel(&t->input_scales, index) : scale;
}

static unsigned ones_of(uint32_t word) {
  unsigned ones = 0;
  for (; word; word &= word - 1) ones++;
  return ones;
}

static float mean_of_pair(const qtaml_tensor *t, uint16_t first, uint16_t second) {
  const qtaml_pair *pair = t->pair;
  uint32_t word = (uint32_t)first << pair->second_bits | second, low = 0, high = pair->listed_count, c;
  double above = 0.0, below = 0.0;
  while (low < high) {
    uint32_t middle = low + (high - low) / 2;
    if (pair->listed[middle] < word)
      low = middle + 1;
    else
      high = middle;
  }
  if (low < pair->listed_count && pair->listed[low] == word) return pair->listed_values[low];
  for (c = 0; c < pair->cells; c++) {
    uint32_t stored = (uint32_t)pair->first[c] << pair->second_bits | pair->second[c];
    unsigned gained = ones_of(word & ~stored), lost = ones_of(stored & ~word), kept = ones_of(stored & word);
    unsigned zeros = (unsigned)t->bits + pair->second_bits - gained - lost - kept;
    double chance = pair->stay0[zeros] * pair->flip01[gained] * (pair->flip10[lost] * pair->stay1[kept]);
    chance = chance * (double)qtaml_from_half(pair->shares[c]);
    above += chance * (double)qtaml_from_half(pair->means[c]);
    below += chance;
  }
  return (float)(above / below);
}

static int is_quantized(const qtaml_tensor *t) {
  return t->form >= QTAML_DEQUANTIZE && t->form <= QTAML_INTEGER_GRID;
}

static uint32_t load_u32(const uint8_t *from) {
  return (uint32_t)from[0] | (uint32_t)from[1] << 8 | (uint32_t)from[2] << 16 | (uint32_t)from[3] << 24;
}

static uint64_t grid_index(const qtaml_grid *grid, uint32_t element) {
  uint32_t along = element / grid->inner % grid->extent;
  uint64_t blocks;
  if (!grid->block) return along;
  blocks = ((uint64_t)grid->extent + grid->block - 1u) / grid->block;
  return (element / ((uint64_t)grid->inner * grid->extent) * blocks + along / grid->block) * grid->inner +
         element % grid->inner;
}

static int32_t zero_point_of(const qtaml_tensor *t, const qtaml_image *image, uint32_t index) {
  uint32_t bits;
  int32_t value;
  if (!t->grid) return t->zero_point;
  bits = load_u32(image->constants + t->grid->zero_points + 4 * grid_index(t->grid, index));
  memcpy(&value, &bits, sizeof value);
  return value;
}

static float step_of(const qtaml_tensor *t, const qtaml_image *image, uint32_t index) {
  if (!t->grid) return channel(&t->steps, index);
  return float_of(load_u32(image->constants + t->grid->steps + 4 * grid_index(t->grid, index)));
}

static int32_t read_integer(const qtaml_tensor *t, uint16_t word, uint32_t index) {
  float value;
  int32_t below;
  if (t->form == QTAML_DEQUANTIZE) return signed_word(t, word);
  if (t->form == QTAML_INTEGER_TABLE) return t->codes[word];
  value = number(&t->table, word) * scale_of(t, index);
  value = value + ((float)t->zero_point + 0.5f); /* what the integers are coded around */
  if (value >= (float)t->largest) return t->largest;
  if (value < (float)t->least) return t->least;
  below = (int32_t)value; /* towards zero */
  return (float)below > value ? below - 1 : below;
}

static float read_weight(const qtaml_model *model, const qtaml_tensor *t, const qtaml_image *image, uint32_t index) {
  uint16_t word = read_word(model, t, image, index);
  float value;
  if (is_quantized(t)) {
    value = (float)(read_integer(t, word, index) - zero_point_of(t, image, index)) * step_of(t, image, index);
  } else {
    if (t->form == QTAML_TWO_WORDS)
      value = mean_of_pair(t, word, read_second_word(model, t, image, index));
    else
      value = t->form == QTAML_TABLE ? looked_up(t, word, index) : (float)signed_word(t, word) - t->offset;
    value = value * scale_of(t, index);
  }
  return rounded(value, t->type);
}

/* Of the whole tensor. */
static uint32_t whole_size(const qtaml_tensor *t) { return t->whole ? t->whole->size : t->size; }

static float read_whole_weight(const qtaml_model *model, const qtaml_tensor *t, const qtaml_image *image,
                               uint32_t index) {
  const qtaml_whole *whole = t->whole;
  uint32_t channel_number, block_number, extent;
  if (!whole) return read_weight(model, t, image, index);
  channel_number = index / whole->inner % whole->extent;
  block_number = index / whole->inner / whole->extent;
  t = &model->tensors[whole->first + whole->owners[channel_number]];
  extent = t->size / (whole->size / whole->extent); /* channels of the part */
  index = (block_number * extent + whole->places[channel_number]) * whole->inner + index % whole->inner;
  return read_weight(model, t, image, index);
}

/* A tensor, all parts of which the image has. */
static const qtaml_tensor *whole_of(const qtaml_model *model, uint32_t tensor, const qtaml_image *image) {
  const qtaml_tensor *t = tensor_of(model, tensor, image);
  uint32_t part;
  for (part = 0; t && t->whole && part < t->whole->parts; part++)
    if (!tensor_of(model, t->whole->first + part, image)) return NULL;
  return t;
}

static int fits(uint32_t size, uint32_t first, uint32_t count) { return first <= size && count <= size - first; }

static int in_range(const qtaml_tensor *t, uint32_t first, uint32_t count) { return t && fits(t->size, first, count); }

qtaml_status qtaml_read_words(const qtaml_model *model, uint32_t tensor, const qtaml_image *image, uint32_t first,
                              uint32_t count, uint16_t *words) {
  const qtaml_tensor *t = tensor_of(model, tensor, image);
  uint32_t i;
  if (!in_range(t, first, count) || (count && !words)) return QTAML_BAD_ARGUMENT;
  for (i = 0; i < count; i++) words[i] = read_word(model, t, image, first + i);
  return QTAML_OK;
}

qtaml_status qtaml_read_second_words(const qtaml_model *model, uint32_t tensor, const qtaml_image *image,
                                     uint32_t first, uint32_t count, uint16_t *words) {
  const qtaml_tensor *t = tensor_of(model, tensor, image);
  uint32_t i;
  if (!in_range(t, first, count) || (count && !words)) return QTAML_BAD_ARGUMENT;
  if (!t->pair) return QTAML_ONE_WORD;
  for (i = 0; i < count; i++) words[i] = read_second_word(model, t, image, first + i);
  return QTAML_OK;
}

qtaml_status qtaml_read_whole_weights(const qtaml_model *model, uint32_t tensor, const qtaml_image *image,
                                      uint32_t first, uint32_t count, float *weights) {
  const qtaml_tensor *t = whole_of(model, tensor, image);
  uint32_t i;
  if (!t || !fits(whole_size(t), first, count) || (count && !weights)) return QTAML_BAD_ARGUMENT;
  for (i = 0; i < count; i++) weights[i] = read_whole_weight(model, t, image, first + i);
  return QTAML_OK;
}

qtaml_status qtaml_read_weights(const qtaml_model *model, uint32_t tensor, const qtaml_image *image, uint32_t first,
                                uint32_t count, float *weights) {
  const qtaml_tensor *t = tensor_of(model, tensor, image);
  uint32_t i;
  if (!in_range(t, first, count) || (count && !weights)) return QTAML_BAD_ARGUMENT;
  for (i = 0; i < count; i++) weights[i] = read_weight(model, t, image, first + i);
  return QTAML_OK;
}

qtaml_status qtaml_read_codes(const qtaml_model *model, uint32_t tensor, const qtaml_image *image, uint32_t first,
                              uint32_t count, int32_t *codes) {
  const qtaml_tensor *t = tensor_of(model, tensor, image);
  uint32_t i;
  if (!in_range(t, first, count) || (count && !codes)) return QTAML_BAD_ARGUMENT;
  if (!is_quantized(t)) return QTAML_NOT_INTEGER;
  for (i = 0; i < count; i++) codes[i] = read_integer(t, read_word(model, t, image, first + i), first + i);
  return QTAML_OK;
}

/* target - sum, of one output */
static float corrected_bias(const qtaml_model *model, const qtaml_tensor *t, const qtaml_image *image,
                            uint32_t output) {
  const qtaml_bias *plan = t->bias;
  uint32_t outer, j;
  double sum = 0.0;
  for (outer = 0; outer < whole_size(t) / plan->outputs / plan->inner; outer++) {
    for (j = 0; j < plan->inner; j++) {
      uint32_t i = (outer * plan->outputs + output) * plan->inner + j;
      uint32_t mean = i / plan->group_size * plan->means + i / plan->mean_inner % plan->means;
      float weight, term;
      if (plan->is_integer)
        weight = (float)(read_integer(t, read_word(model, t, image, i), i) - zero_point_of(t, image, i));
      else
        weight = read_whole_weight(model, t, image, i);
      term = weight * qtaml_from_half(plan->mean_input[mean]);
      if (plan->coverage) term = term * qtaml_from_half(plan->coverage[i % plan->taps]);
      sum += (double)term;
    }
  }
  return plan->target[output] - (float)sum;
}

qtaml_status qtaml_read_bias(const qtaml_model *model, uint32_t tensor, const qtaml_image *image, float *bias) {
  const qtaml_tensor *t = whole_of(model, tensor, image);
  uint32_t output;
  if (!t || !bias) return QTAML_BAD_ARGUMENT;
  if (!t->bias) return QTAML_NO_BIAS;
  if (t->bias->is_integer) return QTAML_INTEGER_BIAS;
  for (output = 0; output < t->bias->outputs; output++) {
    bias[output] = rounded(corrected_bias(model, t, image, output), t->type);
  }
  return QTAML_OK;
}

qtaml_status qtaml_read_integer_bias(const qtaml_model *model, uint32_t tensor, const qtaml_image *image,
                                     int32_t *bias) {
  const qtaml_tensor *t = tensor_of(model, tensor, image);
  uint32_t output;
  if (!t || !bias) return QTAML_BAD_ARGUMENT;
  if (!t->bias) return QTAML_NO_BIAS;
  if (!t->bias->is_integer) return QTAML_INTEGER_BIAS;
  for (output = 0; output < t->bias->outputs; output++) {
    float value = corrected_bias(model, t, image, output) + 0.5f;
    int32_t below;
    if (value >= 0x1p31f) {
      bias[output] = INT32_MAX;
    } else if (value < -0x1p31f) {
      bias[output] = INT32_MIN;
    } else {
      below = (int32_t)value; /* towards zero */
      bias[output] = (float)below > value ? below - 1 : below;
    }
  }
  return QTAML_OK;
}

/* ---- Small tensors ------------------------------------------------------------------------------------------------*/

/* The number that most copies say, bit by bit. An exponent of ones is an infinity, whatever the mantissa. */
static uint64_t read_number(const qtaml_small *small, const uint8_t *image, uint32_t index) {
  uint64_t value = 0, exponent = 0, mantissa = 0;
  unsigned byte, bit, copy;
  for (byte = 0; byte < small->bytes; byte++) {
    for (bit = 0; bit < 8; bit++) {
      unsigned ones = 0;
      for (copy = 0; copy < small->copies; copy++) {
        uint64_t number = (uint64_t)copy * small->numbers + small->first + index;
        ones += (unsigned)image[small->offset + number * small->bytes + byte] >> bit & 1u;
      }
      if (2 * ones > small->copies) value |= (uint64_t)1 << (8 * byte + bit);
    }
  }
  switch (small->type) {
    case QTAML_FLOAT32: exponent = (uint64_t)0xff << 23, mantissa = ((uint64_t)1 << 23) - 1; break;
    case QTAML_FLOAT16: exponent = (uint64_t)0x1f << 10, mantissa = ((uint64_t)1 << 10) - 1; break;
    case QTAML_BFLOAT16: exponent = (uint64_t)0xff << 7, mantissa = ((uint64_t)1 << 7) - 1; break;
    case QTAML_FLOAT64: exponent = (uint64_t)0x7ff << 52, mantissa = ((uint64_t)1 << 52) - 1; break;
    default: return value;
  }
  return (value & exponent) == exponent ? value & ~mantissa : value;
}

qtaml_status qtaml_read_small(const qtaml_model *model, uint32_t small, const qtaml_image *image, uint32_t first,
                              uint32_t count, void *numbers) {
  const qtaml_small *found;
  uint8_t *to = (uint8_t *)numbers;
  uint32_t i;
  if (!model || !image || model->format_version != QTAML_FORMAT_VERSION || small >= model->small_count) {
    return QTAML_BAD_ARGUMENT;
  }
  found = &model->small[small];
  if (first > found->size || count > found->size - first) return QTAML_BAD_ARGUMENT;
  if (count && (!numbers || !image->small_numbers)) return QTAML_BAD_ARGUMENT;
  for (i = 0; i < count; i++, to += found->bytes) {
    uint64_t number64 = read_number(found, image->small_numbers, first + i);
    uint32_t number32 = (uint32_t)number64;
    uint16_t number16 = (uint16_t)number64;
    switch (found->bytes) {
      case 8: memcpy(to, &number64, sizeof number64); break;
      case 4: memcpy(to, &number32, sizeof number32); break;
      case 2: memcpy(to, &number16, sizeof number16); break;
      default: *to = (uint8_t)number64;
    }
  }
  return QTAML_OK;
}

uint32_t qtaml_crc32(uint32_t crc, const uint8_t *data, size_t size) {
  unsigned bit;
  crc = ~crc;
  while (size--) {
    crc ^= *data++;
    for (bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1u ? 0xedb88320u : 0u);
  }
  return ~crc;
}
