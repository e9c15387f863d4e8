#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "qtaml/fault_job.h"

namespace qtaml {
namespace {

// -ln(1 - p) by its series, for a small p; otherwise more than 2^-7.
double hazard(double p) {
  double total = 1.0 / 9.0;
  for (int divisor = 8; divisor > 0; --divisor) total = 1.0 / divisor + p * total;
  return p * total;
}

// 2^exponent, exactly.
double power_of_two(int exponent) {
  const uint64_t word = static_cast<uint64_t>(1023 + exponent) << 52;
  double value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

// -ln(1 - p) for p of at most 1/2.
double hazard_of_any(double p) {
  if (p <= power_of_two(-static_cast<int>(kFirstOctave))) return hazard(p);
  const double z = p / (2.0 - p), square = z * z;
  double total = 1.0 / 37.0;
  for (int divisor = 35; divisor > 0; divisor -= 2) total = 1.0 / divisor + square * total;
  return 2.0 * z * total;
}

// floor(2^64 * P[Poisson(2^mean_log2) > q]) for all q where that is not 0.
std::vector<uint64_t> poisson_tail(int mean_log2) {
  constexpr int kTerms = 512;
  const double mean = power_of_two(mean_log2), small = std::min(mean, 1.0);
  double term[kTerms];
  term[0] = 1.0;
  for (int divisor = 20; divisor > 0; --divisor) term[0] = 1.0 - small * term[0] / divisor;
  for (int i = 0; i < mean_log2; ++i) term[0] = term[0] * term[0];
  for (int q = 1; q < kTerms; ++q) term[q] = term[q - 1] * mean / q;
  double tail = 0.0;
  std::vector<uint64_t> tails;
  for (int q = kTerms - 1; q > 0; --q) {
    tail += term[q];
    const double scaled = tail * power_of_two(64);
    const uint64_t value = scaled < power_of_two(64) ? static_cast<uint64_t>(scaled) : ~uint64_t{0};
    if (value > 0) tails.push_back(value);
  }
  std::reverse(tails.begin(), tails.end());
  tails.resize((tails.size() + 3) / 4 * 4);  // zeros, which no number is below: the kernel reads four at a time
  return tails;
}

// The table of Poisson(2^(14-j)) for each octave j of sparse rates.
HitTable hit_table(unsigned octave) {
  static const std::vector<std::vector<uint64_t>> tables = [] {
    std::vector<std::vector<uint64_t>> all;
    for (int j = kFirstOctave; j <= static_cast<int>(kLastOctave); ++j) {
      all.push_back(poisson_tail(static_cast<int>(kChunkBits) - j));
    }
    return all;
  }();
  const std::vector<uint64_t>& tail = tables[octave - kFirstOctave];
  return {tail.data(), static_cast<uint32_t>(tail.size())};
}

// The least octave j, from `first` to the last, with largest > 2^-(j+1).
unsigned octave_of(double largest, unsigned first) {
  unsigned octave = first;
  while (octave < kLastOctave && largest <= power_of_two(-static_cast<int>(octave) - 1)) ++octave;
  return octave;
}

void add_dense(FaultPlan& plan, uint32_t plane, const double* p) {
  DensePlane& entry = plan.dense[plan.dense_count++];
  entry.plane = plane;
  for (int s = 0; s < 2; ++s) entry.threshold[s] = static_cast<uint64_t>(p[s] * power_of_two(64));
  plan.dense_asymmetric |= entry.threshold[0] != entry.threshold[1];
  for (unsigned i = 0; i < kLeading; ++i) {
    entry.digit[i] = -(entry.threshold[0] >> (kTrailing + i) & 1);
    entry.differs[i] = -((entry.threshold[0] ^ entry.threshold[1]) >> (kTrailing + i) & 1);
  }
  for (unsigned i = 0; i < kLeading / 2; ++i) {
    entry.digits[i] = static_cast<uint8_t>(entry.threshold[0] >> (kTrailing + 2 * i) & 3);
  }
}

}  // namespace

void philox(const FaultJob& job, uint32_t index, uint32_t chunk, uint32_t kind_plane, uint64_t halves[2]) {
  uint32_t x0 = index, x1 = chunk, x2 = kind_plane, x3 = job.stream;
  for (const auto& key : job.round_key) {
    const uint64_t p0 = uint64_t{kPhiloxMultiplier0} * x0, p1 = uint64_t{kPhiloxMultiplier1} * x2;
    x0 = static_cast<uint32_t>(p1 >> 32) ^ x1 ^ static_cast<uint32_t>(key[0]);
    x1 = static_cast<uint32_t>(p1);
    x2 = static_cast<uint32_t>(p0 >> 32) ^ x3 ^ static_cast<uint32_t>(key[1]);
    x3 = static_cast<uint32_t>(p0);
  }
  halves[0] = x0 | uint64_t{x1} << 32;
  halves[1] = x2 | uint64_t{x3} << 32;
}

void plan_seed(FaultJob& job, uint64_t seed) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (auto& key : job.round_key) {
    key[0] = k0;
    key[1] = k1;
    k0 += kPhiloxWeyl0;
    k1 += kPhiloxWeyl1;
  }
}

uint64_t seed_of_inference(uint64_t seed, uint64_t inference) {
  FaultJob job{};
  plan_seed(job, seed);
  uint64_t halves[2];
  philox(job, static_cast<uint32_t>(inference), static_cast<uint32_t>(inference >> 32), kInference << 8, halves);
  return halves[0];
}

void plan_planes(FaultPlan& plan, const float* rates, size_t planes, uint32_t exposed) {
  plan.dense_count = plan.sparse_count = 0;
  plan.dense_asymmetric = false;
  for (uint32_t plane = 0; plane < plan.width; ++plane) {
    if (!(exposed >> plane & 1)) continue;
    const double p[2] = {rates[plane], rates[planes + plane]};
    const double r[2] = {hazard(p[0]), hazard(p[1])};
    const double largest = std::max(r[0], r[1]);
    if (largest == 0) continue;
    if (plan.kind == FaultKind::kStuckAt || largest > power_of_two(-static_cast<int>(kFirstOctave))) {
      add_dense(plan, plane, p);
    } else {
      const unsigned octave = octave_of(largest, kFirstOctave);
      SparsePlane& entry = plan.sparse[plan.sparse_count++];
      entry.plane = plane;
      for (int s = 0; s < 2; ++s) {
        entry.accept_below[s] = static_cast<uint64_t>(r[s] * power_of_two(static_cast<int>(octave + kHitBits)));
      }
      entry.hits = hit_table(octave);
    }
  }
}

void plan_bursts(FaultPlan& plan, const float* rates, size_t planes, uint32_t exposed, unsigned bits,
                 const BurstGeometry& geometry) {
  BurstPlan& burst = plan.burst;
  burst = BurstPlan{};
  burst.row_cells = geometry.row_cells;
  burst.burst_cells = geometry.burst_cells;
  burst.interleave = geometry.interleave;
  burst.bits = bits;
  double starts[32][2] = {}, largest = 0;
  for (uint32_t plane = 0; plane < plan.width; ++plane) {
    if (!(exposed >> plane & 1)) continue;
    for (int s = 0; s < 2; ++s) {
      starts[plane][s] = hazard_of_any(rates[s * planes + plane]) / static_cast<double>(geometry.burst_cells);
      largest = std::max(largest, starts[plane][s]);
    }
  }
  if (largest == 0) return;  // no table of hits: nothing to draw
  const unsigned octave = octave_of(largest, 0);
  burst.chunk_bits = std::min(kChunkBits, kFirstOctave + octave);
  burst.hits = hit_table(std::max(octave, kFirstOctave));
  for (uint32_t plane = 0; plane < plan.width; ++plane) {
    for (int s = 0; s < 2; ++s) {
      const double scaled = starts[plane][s] * power_of_two(static_cast<int>(octave + kHitBits));
      burst.accept_below[plane][s] = static_cast<uint64_t>(scaled);
    }
  }
}

}  // namespace qtaml
