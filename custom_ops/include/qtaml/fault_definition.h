// Constants of the result of qtaml::FaultInject, version 1. The definition, which is public and frozen, stands in full at
// the top of qtaml_onnx/fault_inject.py; in short:
//
//   - words of W = 2, 4, 8, 16 or 32 bits in chunks of 16384 (c) and blocks of 512; plane 0 is the least significant;
//   - philox(i, c, kind, k) = Philox4x32-10, key = seed, counter = (i, c, 256*kind + k, stream), as halves h0, h1;
//   - r_s = -ln(1 - p_s) by a fixed series; plane dense if max r_s > 2^-7, else sparse;
//   - dense: flip iff U < floor(p_s * 2^64); the 12 leading bits of U are bit-sliced rows of 512 bits from eight SFC64
//     generators seeded by philox kind 0, least significant row first; the 52 trailing ones are philox kind 1;
//   - sparse: Poisson(2^(14-j)) hits a chunk (kind 2), 2^-(j+1) < max r_s <= 2^-j; hit i (kind 3) is 14 bits of
//     position and 50 bits compared with floor(r_s * 2^(j+50)); a bit flips if any accepted hit falls on it.
//   - stuck-at: every plane dense, rows kind 4, trailing bits kind 5, U inverted where the bit is 1;
//   - burst: Poisson hits (kinds 6 and 7) on the places where a burst may start, each covering adjacent cells of a row;
//   - an inference number gives the seed philox(number, 8 << 8, 0).h0 of that inference.
//
// Every step is integer arithmetic or a single IEEE 754 operation in a stated order (hence -ffp-contract=off).
#pragma once

#include <cstdint>

namespace qtaml {

inline constexpr unsigned kChunkBits = 14;
inline constexpr uint32_t kChunk = 1u << kChunkBits;  // words
inline constexpr uint32_t kBlock = 512;               // words, and bits of a row
inline constexpr unsigned kLeading = 12;              // bit-sliced bits of U
inline constexpr unsigned kTrailing = 64 - kLeading;
inline constexpr unsigned kWarmUp = 12;  // SFC64 outputs dropped after seeding
inline constexpr unsigned kHitBits = 64 - kChunkBits;
inline constexpr unsigned kFirstOctave = 7, kLastOctave = 63;

// Kinds of Philox counters.
enum Counter : uint32_t {
  kSeedRows = 0,
  kTrailingBits = 1,
  kHitCount = 2,
  kHits = 3,
  kStuckRows = 4,
  kStuckTrailing = 5,
  kBurstCount = 6,
  kBursts = 7,
  kInference = 8,
};

enum class FaultKind : uint32_t { kIndependent, kStuckAt, kBurst };

// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
inline constexpr unsigned kPhiloxRounds = 10;
inline constexpr uint32_t kPhiloxMultiplier0 = 0xD2511F53, kPhiloxMultiplier1 = 0xCD9E8D57;
inline constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9, kPhiloxWeyl1 = 0xBB67AE85;

}  // namespace qtaml
