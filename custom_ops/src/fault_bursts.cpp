// The kind burst: few events, each covering adjacent cells of a physical row. One plain kernel serves every processor.
#include <algorithm>
#include <cstring>

#include "qtaml/fault_job.h"

namespace qtaml {
namespace {

uint32_t hit_count(const HitTable& table, uint64_t u) {
  const auto above = std::partition_point(table.tail, table.tail + table.length, [u](uint64_t t) { return u < t; });
  return static_cast<uint32_t>(above - table.tail);
}

// The words `begin` to `end` of a tensor, which one call writes.
struct Part {
  const FaultJob& job;
  size_t begin, end;

  // One burst: `row_start` is the address of its row's first cell, `column` that of its first cell, which may lie
  // before the row.
  void apply(uint64_t row_start, int64_t column, uint64_t level) const {
    const BurstPlan& burst = job.plan->burst;
    const uint64_t group_cells = burst.interleave * burst.bits;
    const int64_t last = std::min(column + static_cast<int64_t>(burst.burst_cells),
                                  static_cast<int64_t>(burst.row_cells));
    const uint64_t first = static_cast<uint64_t>(std::max<int64_t>(column, 0)), cell = row_start + first;
    uint64_t group_word = cell / group_cells * burst.interleave;  // the first word of the group
    uint64_t plane = cell % group_cells / burst.interleave, in_group = cell % group_cells % burst.interleave;
    for (int64_t at = static_cast<int64_t>(first); at < last; ++at, ++in_group) {
      if (in_group == burst.interleave) {
        in_group = 0;
        if (++plane == burst.bits) {
          plane = 0;
          group_word += burst.interleave;
        }
      }
      const uint64_t word = group_word + in_group;
      if (word < begin || word >= end) continue;
      const uint64_t bit = word * job.plan->width + plane;
      const unsigned state = job.source[bit / 8] >> bit % 8 & 1;
      if (level >= burst.accept_below[plane][state]) continue;
      const unsigned char mask = static_cast<unsigned char>(1u << bit % 8);
      unsigned char& byte = job.target[bit / 8];
      byte = static_cast<unsigned char>((byte & ~mask) | (~job.source[bit / 8] & mask));  // a second burst adds nothing
    }
  }
};

// The place of a cell on the line of places where a burst may start, if the burst shall end there.
uint64_t place(const BurstPlan& burst, uint64_t cell) {
  return cell / burst.row_cells * (burst.row_cells + burst.burst_cells - 1) + cell % burst.row_cells;
}

}  // namespace

uint64_t burst_chunks(const FaultPlan& plan, uint64_t words) {
  const BurstPlan& burst = plan.burst;
  if (plan.kind != FaultKind::kBurst || burst.hits.length == 0 || words == 0) return 0;
  const uint64_t last_cell = ((words - 1) / burst.interleave + 1) * burst.interleave * burst.bits - 1;
  return ((place(burst, last_cell) + burst.burst_cells - 1) >> burst.chunk_bits) + 1;
}

void inject_bursts(const FaultJob& job, uint32_t first_chunk, uint32_t chunks) {
  const BurstPlan& burst = job.plan->burst;
  const unsigned width = job.plan->width;
  const Part part = {job, size_t{first_chunk} * kChunk,
                     std::min(job.words, (size_t{first_chunk} + chunks) * size_t{kChunk})};
  const size_t first_byte = part.begin * width / 8, end_byte = packed_bytes(part.end, width);
  std::memcpy(job.target + first_byte, job.source + first_byte, end_byte - first_byte);
  if (const unsigned used = part.end * width % 8) job.target[end_byte - 1] &= static_cast<unsigned char>((1u << used) - 1);
  if (burst.hits.length == 0) return;

  // The places whose bursts reach a cell of these words, and the chunks of places that hold them.
  const uint64_t group_cells = burst.interleave * burst.bits;
  const uint64_t first_cell = part.begin / burst.interleave * group_cells;
  const uint64_t last_cell = ((part.end - 1) / burst.interleave + 1) * group_cells - 1;
  const uint64_t first_place = place(burst, first_cell), last_place = place(burst, last_cell) + burst.burst_cells - 1;
  const uint64_t places_of_row = burst.row_cells + burst.burst_cells - 1;
  for (uint64_t chunk = first_place >> burst.chunk_bits; chunk <= last_place >> burst.chunk_bits; ++chunk) {
    uint64_t halves[2];
    philox(job, 0, static_cast<uint32_t>(chunk), kBurstCount << 8, halves);
    const uint32_t hits = hit_count(burst.hits, halves[0]);
    for (uint32_t i = 0; i < hits; ++i) {
      if (i % 2 == 0) philox(job, i / 2, static_cast<uint32_t>(chunk), kBursts << 8, halves);
      const uint64_t hit = halves[i % 2];
      const uint64_t start = (chunk << burst.chunk_bits) + (hit >> (64 - burst.chunk_bits));
      if (start < first_place || start > last_place) continue;
      const int64_t column = static_cast<int64_t>(start % places_of_row) - static_cast<int64_t>(burst.burst_cells - 1);
      part.apply(start / places_of_row * burst.row_cells, column, hit & ((uint64_t{1} << kHitBits) - 1));
    }
  }
}

}  // namespace qtaml
