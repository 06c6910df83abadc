// In which order a layer's inputs are multiplied where vpmaddubsw adds up two neighbours' products in 16 bits.
//
// The instruction takes activations as they are, from 0 to 255, so its sums fit if the two weights do: 255 * 128 = 32640.
// About one pair in six of trained weights is too large in one of 32 outputs. The order of inputs is free, as all sums
// are exact. So for each panel of 32 outputs, among each 16 inputs, those are put side by side that fit.
#pragma once

#include <initializer_list>

#include "gemm.h"

namespace {

// The first byte of a group has this bit if there is no such order: its products need the longer way. The shuffle that
// follows the order ignores the bit.
constexpr uint8_t kTooLarge = 64;

constexpr int64_t kSliceGroups = 256;  // as many as a byte can tell apart

// Bytes of a panel's order: for each group the order of its inputs, then for each group which one of its slice it is.
inline int64_t order_bytes(int64_t depth) { return depth + depth / kGroup; }

// Which of 16 inputs may stand beside each other: bit j of may[i]. weights[input][output of the panel].
inline void find_partners(const int8_t (&weights)[kGroup][kPanel], uint32_t (&may)[kGroup]) {
  for (auto& each : may) each = 0;
  for (int i = 0; i < kGroup; i++)
    for (int j = 0; j < i; j++) {
      int16_t large = 0;
      for (int n = 0; n < kPanel; n++) {
        // Of different signs the products do not add up, and the sum of the weights is small.
        const int16_t sum = static_cast<int16_t>(weights[i][n] + weights[j][n]);
        large |= static_cast<int16_t>((sum > 128) | (sum < -128));
      }
      if (large) continue;
      may[i] |= 1u << j;
      may[j] |= 1u << i;
    }
}

// Elements of a set. The compiler's own function would need libgcc at run time, where it is not always there.
inline int count(uint32_t set) {
  int found = 0;
  for (; set; set &= set - 1) found++;
  return found;
}

// Write the inputs of the set `left` so that every two neighbours are partners, or return false. The one with the
// fewest partners chooses first; `tries` limits the search.
inline bool pair_up(const uint32_t (&may)[kGroup], uint32_t left, uint8_t* order, int& tries) {
  if (!left) return true;
  if (tries-- == 0) return false;
  int hardest = 0, fewest = kGroup;
  for (int i = 0; i < kGroup; i++) {
    const int partners = count(may[i] & left);
    if (left >> i & 1 && partners < fewest) fewest = partners, hardest = i;
  }
  for (uint32_t partners = may[hardest] & left; partners; partners &= partners - 1) {
    const int partner = __builtin_ctz(partners);
    order[0] = static_cast<uint8_t>(hardest), order[1] = static_cast<uint8_t>(partner);
    if (pair_up(may, left & ~(1u << hardest) & ~(1u << partner), order + 2, tries)) return true;
    if (tries < 0) return false;
  }
  return false;
}

// The order (16) of a group, with kTooLarge in the first byte if not every pair fits.
inline void order_group(const int8_t (&weights)[kGroup][kPanel], uint8_t* order) {
  constexpr uint32_t kAll = (1u << kGroup) - 1;
  uint32_t may[kGroup];
  find_partners(weights, may);
  int tries = 1000;
  if (pair_up(may, kAll, order, tries)) return;
  for (int i = 0; i < kGroup; i++) order[i] = static_cast<uint8_t>(i);
  order[0] |= kTooLarge;
}

// A weight (n, k), and the zero point of its activations.
struct Weight {
  const int8_t* values;
  int64_t n, k;
  int32_t zero_point;

  // Those of a panel and of up to 16 inputs, zeros beyond the last.
  void group(int64_t row, int64_t input, int8_t (&to)[kGroup][kPanel]) const {
    std::memset(to, 0, sizeof to);
    for (int64_t i = 0; i < lesser(kGroup, k - input); i++)
      for (int64_t j = 0; j < lesser(kPanel, n - row); j++) to[i][j] = values[(row + j) * k + input + i];
  }
};

// Where weights go: lines of 4 inputs x 16 outputs, and where the sums begin. `packed` and `comp` are those of a panel.
struct Packed {
  uint8_t* packed;
  int32_t* comp;
  int64_t depth;

  // Write the inputs of a group, in this order if there is one.
  void write(const int8_t (&weights)[kGroup][kPanel], int64_t group, const uint8_t* order, int32_t zero_point) const {
    const int32_t taken_off = order && *order & kTooLarge ? 128 : 0;
    for (int64_t n = 0; n < kPanel; n++) {
      uint8_t* column = packed + n / 16 * 16 * depth + n % 16 * 4 + group * kGroup * 16;
      for (int64_t i = 0; i < kGroup; i++) {
        const int8_t w = weights[order ? order[i] % kGroup : i][n];
        column[i / 4 * 64 + i % 4] = static_cast<uint8_t>(w);
        comp[n] += (taken_off - zero_point) * w;
      }
    }
  }
};

// Pack the weights of a panel, in their own order.
inline void pack_panel(const Weight& from, int64_t row, const Packed& to) {
  int8_t weights[kGroup][kPanel];
  for (int64_t group = 0; group < to.depth / kGroup; group++) {
    from.group(row, group * kGroup, weights);
    to.write(weights, group, nullptr, from.zero_point);
  }
}

// Pack up to kSliceGroups groups of a panel, from `first` on: first those whose pairs fit, then the others, so that the
// branch between them is foreseen. `orders` and `places` are those of the first one.
inline void pack_slice(const Weight& from, int64_t row, int64_t first, int64_t count, const Packed& to, uint8_t* orders,
                       uint8_t* places) {
  int8_t weights[kGroup][kPanel];
  uint8_t found[kSliceGroups][kGroup];
  for (int64_t group = 0; group < count; group++) {
    from.group(row, (first + group) * kGroup, weights);
    order_group(weights, found[group]);
  }
  int64_t next = 0;
  for (const int large : {0, static_cast<int>(kTooLarge)})
    for (int64_t group = 0; group < count; group++) {
      if ((found[group][0] & kTooLarge) != large) continue;
      from.group(row, (first + group) * kGroup, weights);
      to.write(weights, first + next, found[group], from.zero_point);
      std::memcpy(orders + next * kGroup, found[group], kGroup);
      places[next++] = static_cast<uint8_t>(group);
    }
}

// The same in an order that goes into `order`, see order_bytes.
inline void pack_panel_in_order(const Weight& from, int64_t row, const Packed& to, uint8_t* order) {
  uint8_t* places = order + to.depth;
  for (int64_t first = 0; first < to.depth / kGroup; first += kSliceGroups)
    pack_slice(from, row, first, lesser(kSliceGroups, to.depth / kGroup - first), to, order + first * kGroup, places + first);
}

}  // namespace
