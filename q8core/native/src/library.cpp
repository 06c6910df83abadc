// What Python calls (through ctypes): choosing a variant, packing weights, running.
#include <cstring>

#include "encoder.h"
#include "float_encoder.h"
#include "floor.h"
#include "order.h"
#if defined(__linux__)
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

extern const Variant variant_portable;
#if defined(__x86_64__)
extern const Variant variant_amx, variant_avx512_vnni, variant_avx_vnni, variant_avx2;
#endif

namespace {

#if defined(__x86_64__)
// The kernel grants the tile registers on request only, to the whole process.
bool amx_granted() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool has_avx512_vnni() {
  return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

}  // namespace

#define Q8_EXPORT extern "C" __attribute__((visibility("default")))

// A digest of the sources.
Q8_EXPORT const char* q8_digest() { return Q8_DIGEST; }

// Bytes of a structure by its name; 0 if there is none of that name. Python's mirrors are checked against them.
Q8_EXPORT int64_t q8_sizeof(const char* name) {
#define Q8_SIZE(type) {#type, sizeof(type)}
  static constexpr struct {
    const char* name;
    int64_t bytes;
  } kSizes[] = {Q8_SIZE(Grid),  Q8_SIZE(Linear), Q8_SIZE(Table),       Q8_SIZE(Norm),       Q8_SIZE(RelativeBias), Q8_SIZE(Layer),
                Q8_SIZE(Model), Q8_SIZE(Batch),  Q8_SIZE(FloatLinear), Q8_SIZE(FloatLayer), Q8_SIZE(FloatModel)};
#undef Q8_SIZE
  for (const auto& each : kSizes)
    if (!std::strcmp(each.name, name)) return each.bytes;
  return 0;
}

// The variants that this CPU can run, the best first; null after the last.
Q8_EXPORT const Variant* q8_variant(int place) {
  static const Variant* usable[6] = {};
  static const bool found = [] {
    int count = 0;
#if defined(__x86_64__)
    if (has_avx512_vnni() && __builtin_cpu_supports("amx-int8") && amx_granted()) usable[count++] = &variant_amx;
    if (has_avx512_vnni()) usable[count++] = &variant_avx512_vnni;
    if (has_avx2() && __builtin_cpu_supports("avxvnni")) usable[count++] = &variant_avx_vnni;
    if (has_avx2()) usable[count++] = &variant_avx2;
#endif
    usable[count] = &variant_portable;
    return true;
  }();
  return found && place >= 0 && place < 5 ? usable[place] : nullptr;
}

Q8_EXPORT const char* q8_variant_name(const Variant* variant) { return variant->name; }

// Bytes of the order of its inputs; 0 for a variant that reads them in their own.
Q8_EXPORT int64_t q8_order_bytes(const Variant* variant, int64_t n, int64_t k) {
  return variant->orders ? up(n, kPanel) / kPanel * order_bytes(up(k, kDepth)) : 0;
}

// Pack a weight (n, k) for a variant: into `packed`, which must be zeros, and the order of its inputs into `order` if there
// is one. Where the sums begin for activations with this zero point goes into `comp` (n rounded up to 32), which must be
// zeros, too. With `levels`, as codes of `bits` bits, without an order; `zeros`: one of each row, or null. Returns the
// largest magnitude, or the largest possible one; -1 if there is no code for a number, or for the zeros of the padding.
Q8_EXPORT int32_t q8_pack(const Variant* variant, const int8_t* weight, int64_t n, int64_t k, int32_t zero_point,
                          int32_t bits, const int8_t* levels, const int8_t* zeros, uint8_t* packed, uint8_t* order,
                          int32_t* comp) {
  const Weight from{weight, n, k, zero_point};
  const int64_t depth = up(k, kDepth);
  if (levels) {
    const int32_t largest = pack_codes(weight, n, k, CodeOf(bits, levels), zeros, bits, packed, comp);
    const int32_t taken_off = variant->orders && largest > kLargestIn16Bits ? 128 : 0;
    for (int64_t row = 0; row < n; row++) comp[row] *= taken_off - zero_point;
    return largest;
  }
  for (int64_t row = 0; row < n; row += kPanel) {
    const Packed to{packed + row * depth, comp + row, depth};
    if (variant->orders)
      pack_panel_in_order(from, row, to, order + row / kPanel * order_bytes(depth));
    else
      pack_panel(from, row, to);
  }
  return 127;
}

Q8_EXPORT int64_t q8_workspace_bytes(const Model* model, const Batch* batch, int threads) {
  return Workspace(*model, batch->tokens, batch->sequences, longest_of(*batch), threads, nullptr).bytes;
}

// Returns what `Team::share` does.
Q8_EXPORT float q8_forward(const Variant* variant, const Model* model, const Batch* batch, char* workspace,
                           float* logits, int threads) {
  return variant->forward(*model, *batch, workspace, logits, threads);
}

Q8_EXPORT void q8_accumulate(const Variant* variant, const Linear* layer, const uint8_t* a, int64_t rows,
                             int32_t* sums) {
  variant->accumulate(*layer, a, rows, sums);
}

Q8_EXPORT int64_t q8_products_bytes(const Model* model, const Batch* batch) {
  return FloorBuffers(*model, *batch, nullptr).bytes;
}

// The matrix products of the layers alone; `memory` begins with the first layer's input, as activations.
Q8_EXPORT void q8_products(const Variant* variant, const Model* model, const Batch* batch, char* memory, int threads) {
  variant->products(*model, *batch, memory, threads);
}

// Whether this variant has a float32 forward pass.
Q8_EXPORT int q8_has_float(const Variant* variant) { return variant->forward_float != nullptr; }

// Pack a float weight (n, k) into `packed`: n rounded up to 16, times k numbers.
Q8_EXPORT void q8_pack_float(const float* weight, int64_t n, int64_t k, float* packed) {
  const Panels panels(n);
  for (int64_t row = 0; row < up(n, kLanes); row++) {
    int64_t step;
    float* to = packed + panels.place(row, k, &step);
    for (int64_t i = 0; i < k; i++) to[i * step] = row < n ? weight[row * k + i] : 0.f;
  }
}

// Ask for large pages where the system gives them: weights are read from end to end, page after page.
Q8_EXPORT void q8_prefer_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__)
  const uintptr_t page = sysconf(_SC_PAGESIZE), begin = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(memory) + bytes) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

Q8_EXPORT int64_t q8_float_workspace_bytes(const FloatModel* model, const Batch* batch, int threads) {
  return FloatWorkspace(*model, batch->tokens, batch->sequences, longest_of(*batch), threads, nullptr).bytes;
}

Q8_EXPORT float q8_forward_float(const Variant* variant, const FloatModel* model, const Batch* batch, char* workspace,
                                 float* logits, int threads) {
  return variant->forward_float(*model, *batch, workspace, logits, threads);
}

Q8_EXPORT void q8_row_magnitudes(const Variant* variant, const void* x, int type, int64_t rows, int64_t columns,
                                 float* to, int threads) {
  variant->passes.row_magnitudes(x, type, rows, columns, to, threads);
}

Q8_EXPORT void q8_row_sides(const Variant* variant, const void* x, int type, int64_t rows, int64_t columns, float* lows,
                            float* highs, int threads) {
  variant->passes.row_sides(x, type, rows, columns, lows, highs, threads);
}

Q8_EXPORT void q8_to_grid(const Variant* variant, const void* x, int type, int64_t rows, int64_t columns,
                          const float* inverse, float low, float high, const float* scale, int per_row, void* to,
                          int to_type, int threads) {
  variant->passes.to_grid(x, type, rows, columns, inverse, low, high, scale, per_row, to, to_type, threads);
}

Q8_EXPORT void q8_rescale(const Variant* variant, void* y, int type, int64_t rows, int64_t columns, const float* r,
                          const float* bias, int threads) {
  variant->passes.rescale(y, type, rows, columns, r, bias, threads);
}

Q8_EXPORT void q8_column_sums(const Variant* variant, const void* x, int type, int64_t rows, int64_t columns, float* to,
                              int threads) {
  variant->passes.column_sums(x, type, rows, columns, to, threads);
}
