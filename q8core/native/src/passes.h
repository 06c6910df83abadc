// What training with simulated quantization does between its matrix products: each a single pass over a tensor's rows.
//
// Every variant gives the same bits, and those of the same steps taken one by one in float32.
#pragma once

#include <omp.h>

#include <type_traits>

#include "vec.h"

namespace {

typedef uint16_t HalfwordsAnywhere __attribute__((vector_size(32), aligned(2), may_alias));

// The upper half of a float32.
struct Bfloat {
  uint16_t bits;
};

inline Floats load(const Bfloat* from) {
  return from_bits(from_halfwords(*reinterpret_cast<const HalfwordsAnywhere*>(from)) << 16);
}

// Rounded half to even; NaN stays NaN.
inline void store(Bfloat* to, Floats x) {
  const Ints from = where_number(x, bits(x), Ints{} + 0x7fc00000);
  *reinterpret_cast<HalfwordsAnywhere*>(to) = low_halfwords((from + 0x7fff + (from >> 16 & 1)) >> 16);
}

// Call use(column, load, store) for 16 columns at a time; the last time load gives zeros for what is not there, and
// store leaves it out.
template <class Use>
inline void by_lanes(int64_t columns, Use use) {
  int64_t column = 0;
  for (; column + kLanes <= columns; column += kLanes)
    use(column, [](const auto* from) { return load(from); }, [](auto* to, Floats x) { store(to, x); });
  const int64_t rest = columns - column;
  if (!rest) return;
  use(
      column,
      [rest](const auto* from) {
        std::remove_const_t<std::remove_pointer_t<decltype(from)>> some[kLanes] = {};
        std::memcpy(some, from, rest * sizeof(*from));
        return load(some);
      },
      [rest](auto* to, Floats x) {
        std::remove_pointer_t<decltype(to)> some[kLanes];
        store(some, x);
        std::memcpy(to, some, rest * sizeof(*to));
      });
}

// to[row] = max |x[row]|; NaN if there is one: as integers the bits of magnitudes are in order, NaN's after infinity's.
template <class From>
inline void row_magnitudes(const From* x, int64_t rows, int64_t columns, float* to, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; row++) {
    Ints top{};
    by_lanes(columns, [&](int64_t column, auto load_some, auto) {
      top = greatest(bits(magnitude(load_some(x + row * columns + column))), top);
    });
    const int32_t bits = maximum(top);
    std::memcpy(to + row, &bits, sizeof bits);
  }
}

// lows[row] = max(0, max -x[row]) and highs[row] = max(0, max x[row]); a NaN is found in one of them. As integers the
// bits of negative numbers are below 0.
template <class From>
inline void row_sides(const From* x, int64_t rows, int64_t columns, float* lows, float* highs, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; row++) {
    Ints low{}, high{};
    by_lanes(columns, [&](int64_t column, auto load_some, auto) {
      const Ints found = bits(load_some(x + row * columns + column));
      low = greatest(found ^ INT32_MIN, low);
      high = greatest(found, high);
    });
    const int32_t found[] = {maximum(low), maximum(high)};
    std::memcpy(lows + row, found, sizeof *found);
    std::memcpy(highs + row, found + 1, sizeof *found);
  }
}

// The smallest and the largest integer of a grid.
struct Limits {
  float low, high;
};

// clamp(round_half_even(x), low, high); NaN stays NaN.
inline Floats to_steps(Floats x, Limits limits) {
  return greatest(all(limits.low), least(all(limits.high), x)) + 0x1.8p23f - 0x1.8p23f;
}

// to = steps(x * inverse) * scale; without `inverse` or without `scale` that step is left out. Both hold one number, or
// one for each row.
template <class From, class To>
inline void to_grid(const From* x, int64_t rows, int64_t columns, const float* inverse, Limits limits,
                    const float* scale, int per_row, To* to, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; row++) {
    const int64_t place = per_row ? row : 0;
    const Floats i = all(inverse ? inverse[place] : 1.f), s = all(scale ? scale[place] : 1.f);
    const From* from = x + row * columns;
    To* target = to + row * columns;
    if (!inverse)
      by_lanes(columns, [&](int64_t c, auto load_some, auto store_some) { store_some(target + c, load_some(from + c) * s); });
    else if (!scale)
      by_lanes(columns, [&](int64_t c, auto load_some, auto store_some) {
        store_some(target + c, to_steps(load_some(from + c) * i, limits));
      });
    else
      by_lanes(columns, [&](int64_t c, auto load_some, auto store_some) {
        store_some(target + c, to_steps(load_some(from + c) * i, limits) * s);
      });
  }
}

// y = y * r + bias, both of a number for each column.
template <class T>
inline void rescale(T* y, int64_t rows, int64_t columns, const float* r, const float* bias, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t row = 0; row < rows; row++)
    by_lanes(columns, [&](int64_t c, auto load_some, auto store_some) {
      T* place = y + row * columns + c;
      store_some(place, load_some(place) * load_some(r + c) + load_some(bias + c));
    });
}

// to[column] = the sum over all rows, from the first to the last.
template <class From>
inline void column_sums(const From* x, int64_t rows, int64_t columns, float* to, int threads) {
  constexpr int64_t kAtOnce = 4 * kLanes;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t begin = 0; begin < columns; begin += kAtOnce) {
    Floats sums[4] = {};
    const int64_t count = columns - begin < kAtOnce ? columns - begin : kAtOnce;
    for (int64_t row = 0; row < rows; row++)
      by_lanes(count, [&](int64_t c, auto load_some, auto) {
        sums[c / kLanes] += load_some(x + row * columns + begin + c);
      });
    by_lanes(count, [&](int64_t c, auto, auto store_some) { store_some(to + begin + c, sums[c / kLanes]); });
  }
}

// What Python calls, with a number for each type: 0 float32, 1 bfloat16.
struct Run {
  static void row_magnitudes(const void* x, int type, int64_t rows, int64_t columns, float* to, int threads) {
    if (type)
      ::row_magnitudes(static_cast<const Bfloat*>(x), rows, columns, to, threads);
    else
      ::row_magnitudes(static_cast<const float*>(x), rows, columns, to, threads);
  }

  static void row_sides(const void* x, int type, int64_t rows, int64_t columns, float* lows, float* highs, int threads) {
    if (type)
      ::row_sides(static_cast<const Bfloat*>(x), rows, columns, lows, highs, threads);
    else
      ::row_sides(static_cast<const float*>(x), rows, columns, lows, highs, threads);
  }

  static void to_grid(const void* x, int type, int64_t rows, int64_t columns, const float* inverse, float low,
                      float high, const float* scale, int per_row, void* to, int to_type, int threads) {
    const auto pass = [=](auto* from, auto* target) {
      ::to_grid(from, rows, columns, inverse, {low, high}, scale, per_row, target, threads);
    };
    const auto from = [=](auto* target) {
      type ? pass(static_cast<const Bfloat*>(x), target) : pass(static_cast<const float*>(x), target);
    };
    to_type ? from(static_cast<Bfloat*>(to)) : from(static_cast<float*>(to));
  }

  static void rescale(void* y, int type, int64_t rows, int64_t columns, const float* r, const float* bias, int threads) {
    if (type)
      ::rescale(static_cast<Bfloat*>(y), rows, columns, r, bias, threads);
    else
      ::rescale(static_cast<float*>(y), rows, columns, r, bias, threads);
  }

  static void column_sums(const void* x, int type, int64_t rows, int64_t columns, float* to, int threads) {
    if (type)
      ::column_sums(static_cast<const Bfloat*>(x), rows, columns, to, threads);
    else
      ::column_sums(static_cast<const float*>(x), rows, columns, to, threads);
  }
};

}  // namespace
