// What one run of FaultInject has to do, worked out once from the rates, and the kernels that do it chunk by chunk.
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
};

struct SparsePlane {
  uint32_t plane;
  uint64_t accept_below[2];  // floor(r_s * 2^(j+50)), by the bit's state
  const uint64_t* tail;      // floor(2^64 * P[Poisson(2^(14-j)) > q]), decreasing in q
  uint32_t tail_length;      // padded by zeros to a multiple of 8
};

struct FaultJob {
  const unsigned char* source;
  unsigned char* target;
  size_t words;
  unsigned width;  // bits of a word: 8, 16 or 32
  uint32_t stream;
  uint64_t round_key[kPhiloxRounds][2];  // Philox's, from the seed
  uint32_t dense_count, sparse_count;
  bool dense_asymmetric;  // the two rates of some dense plane differ
  DensePlane dense[32];
  SparsePlane sparse[32];
};

// Fills the round keys from the seed.
void plan_seed(FaultJob& job, uint64_t seed);

// Fills the plane tables from the rates: `planes` is the number of columns of the two rows of `rates`.
void plan_planes(FaultJob& job, const float* rates, size_t planes, uint32_t exposed);

// Copies one chunk from source to target and flips its bits.
using ChunkKernel = void (*)(const FaultJob&, uint32_t chunk);

void inject_chunk_plain(const FaultJob&, uint32_t chunk);
#ifdef QTAML_X86
void inject_chunk_avx2(const FaultJob&, uint32_t chunk);
void inject_chunk_avx512(const FaultJob&, uint32_t chunk);
#endif

// The fastest kernel of this processor, or the one that the environment variable QTAML_SIMD names (plain, avx2,
// avx512); null if that one cannot run here.
ChunkKernel chunk_kernel();

}  // namespace qtaml
