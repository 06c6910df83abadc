// Stands in for the instructions of AVX-512 and AMX by which the int8 variants for them differ from AVX2's, so that these
// run on CPUs without them. The compiler takes vectors of 64 bytes apart.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "dpbusd.h"

// Not before: the compiler's own header would take it for its permission.
#define __AVX512VNNI__ 1
#ifdef STAND_IN_FOR_TILES
#define __AMX_INT8__ 1
#endif

typedef int8_t Bytes64 __attribute__((vector_size(64)));
typedef int32_t Ints64 __attribute__((vector_size(64)));
typedef uint16_t Words64 __attribute__((vector_size(64)));

inline __m512i load64(const void* from) {
  __m512i x;
  std::memcpy(&x, from, 64);
  return x;
}
inline void store64(void* to, __m512i x) { std::memcpy(to, &x, 64); }
inline __m512i bytes64(int8_t value) { return (__m512i)(Bytes64{} + value); }
inline __m512i words64(int32_t value) { return (__m512i)(Ints64{} + value); }
inline __m512i and64(__m512i x, __m512i y) { return x & y; }
inline __m512i less64(__m512i x, __m512i y) { return (__m512i)((Bytes64)x - (Bytes64)y); }
inline __m512i right64(__m512i x, int bits) { return (__m512i)((Words64)x >> static_cast<uint16_t>(bits)); }

// What an instruction of AVX2 does, on both halves.
template <class Use, class... More>
inline __m512i by_halves(Use use, More... more) {
  __m256i to[2];
  for (int half = 0; half < 2; half++) {
    const auto part = [=](__m512i x) {
      __m256i parts[2];
      std::memcpy(parts, &x, 64);
      return parts[half];
    };
    to[half] = use(part(more)...);
  }
  return load64(to);
}
inline __m512i shuffle64(__m512i x, __m512i indices) {
  return by_halves([](__m256i x, __m256i at) { return _mm256_shuffle_epi8(x, at); }, x, indices);
}
inline __m512i dpbusd64(__m512i sum, __m512i a, __m512i b) { return by_halves(dpbusd, sum, a, b); }

#undef _mm512_srli_epi16  // a macro where nothing is optimized
#define _mm512_loadu_si512 load64
#define _mm512_storeu_si512 store64
#define _mm512_set1_epi8 bytes64
#define _mm512_set1_epi32 words64
#define _mm512_and_si512 and64
#define _mm512_sub_epi8 less64
#define _mm512_srli_epi16 right64
#define _mm512_shuffle_epi8 shuffle64
#define _mm512_dpbusd_epi32 dpbusd64

// Eight tiles of 16 rows x 64 bytes.
inline uint8_t (*tiles())[16][64] {
  static thread_local uint8_t all[8][16][64];
  return all;
}
inline void load_tile(int tile, const void* from, int64_t pitch) {
  for (int i = 0; i < 16; i++) std::memcpy(tiles()[tile][i], static_cast<const char*>(from) + i * pitch, 64);
}
inline void store_tile(int tile, void* to, int64_t pitch) {
  for (int i = 0; i < 16; i++) std::memcpy(static_cast<char*>(to) + i * pitch, tiles()[tile][i], 64);
}
inline void multiply_tile(int sums, int a, int b) {
  for (int row = 0; row < 16; row++) {
    __m512i sum = load64(tiles()[sums][row]);
    for (int k = 0; k < 16; k++) {
      int32_t four;
      std::memcpy(&four, tiles()[a][row] + 4 * k, 4);
      sum = dpbusd64(sum, words64(four), load64(tiles()[b][k]));
    }
    store64(tiles()[sums][row], sum);
  }
}
inline void ignore(const void* = nullptr) {}

#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbusd
#undef _tile_loadconfig
#undef _tile_release
#define _tile_loadd load_tile
#define _tile_stored store_tile
#define _tile_dpbusd multiply_tile
#define _tile_loadconfig ignore
#define _tile_release ignore
