// What a run of FaultInject has to do, worked out once from the attributes and rates, and the kernels that do it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "qtaml/fault_definition.h"

namespace qtaml {

struct DensePlane {
  uint32_t plane;
  uint64_t threshold[2];  // floor(p_s * 2^64), by the bit's state
  // The leading digits of threshold[0], least significant first, and where those of threshold[1] differ: 0 or all ones.
  uint64_t digit[kLeading], differs[kLeading];
  uint8_t digits[kLeading / 2];  // of threshold[0], two at a time, 0 to 3
};

// A table of the number of hits of a chunk: floor(2^64 * P[Poisson > q]), decreasing in q.
struct HitTable {
  const uint64_t* tail;
  uint32_t length;  // padded by zeros to a multiple of 8
};

struct SparsePlane {
  uint32_t plane;
  uint64_t accept_below[2];  // floor(r_s * 2^(j+50)), by the bit's state
  HitTable hits;
};

struct BurstPlan {
  uint64_t row_cells, burst_cells, interleave;
  unsigned bits;        // cells of a word
  unsigned chunk_bits;  // starts of a chunk, as a power of two
  HitTable hits;
  uint64_t accept_below[32][2];  // floor(r_s / burst_cells * 2^(j+50)), by plane and state
};

// All that does not depend on the words, the seed and the stream.
struct FaultPlan {
  FaultKind kind;
  unsigned width;  // bits of a word: 2, 4, 8, 16 or 32
  uint32_t dense_count, sparse_count;
  bool dense_asymmetric;  // the two rates of some dense plane differ
  DensePlane dense[32];
  SparsePlane sparse[32];
  BurstPlan burst;
};

struct FaultJob {
  const FaultPlan* plan;
  const unsigned char* source;
  unsigned char* target;
  size_t words;
  uint32_t stream;
  uint64_t round_key[kPhiloxRounds][2];  // Philox's, from the seed
};

// Geometry of the kind `burst`: cells of a physical row, cells that a burst covers, words interleaved in a row.
struct BurstGeometry {
  uint64_t row_cells, burst_cells, interleave;
};

// The plan of the independent and stuck-at kinds: `planes` is the number of columns of the two rows of `rates`.
void plan_planes(FaultPlan& plan, const float* rates, size_t planes, uint32_t exposed);

// The plan of the kind burst, `bits` being the stored planes of a word.
void plan_bursts(FaultPlan& plan, const float* rates, size_t planes, uint32_t exposed, unsigned bits,
                 const BurstGeometry& geometry);

// Chunks of places where a burst may start, in a tensor of so many words; 0 if no burst can happen.
uint64_t burst_chunks(const FaultPlan& plan, uint64_t words);

// Fills the round keys from the seed.
void plan_seed(FaultJob& job, uint64_t seed);

// The seed of one inference under a trial's seed.
uint64_t seed_of_inference(uint64_t seed, uint64_t inference);

// The four words of Philox4x32-10 at one counter, as the halves h0 and h1.
void philox(const FaultJob& job, uint32_t index, uint32_t chunk, uint32_t kind_plane, uint64_t halves[2]);

// Bytes that `words` packed words of `width` bits take.
inline size_t packed_bytes(size_t words, unsigned width) { return (words * width + 7) / 8; }

// Copies `chunks` chunks of words from source to target and flips their bits.
using Kernel = void (*)(const FaultJob&, uint32_t first_chunk, uint32_t chunks);

void inject_plain(const FaultJob&, uint32_t first_chunk, uint32_t chunks);
#ifdef QTAML_X86
void inject_avx2(const FaultJob&, uint32_t first_chunk, uint32_t chunks);
void inject_avx512(const FaultJob&, uint32_t first_chunk, uint32_t chunks);
#endif
// The kind burst, on every processor.
void inject_bursts(const FaultJob&, uint32_t first_chunk, uint32_t chunks);

// The fastest kernel of this processor, or the one that the environment variable QTAML_SIMD names (plain, avx2,
// avx512); null if that one cannot run here.
Kernel best_kernel();

}  // namespace qtaml
