// The engine for one instruction set: compiled once per variant, with the compiler's flags for it.
#include "encoder.h"
#include "floor.h"
#include "passes.h"
#if defined(__FMA__)
#include "float_encoder.h"
#define Q8_FORWARD_FLOAT forward_float
#else
#define Q8_FORWARD_FLOAT nullptr
#endif

#define Q8_JOIN_(a, b) a##b
#define Q8_JOIN(a, b) Q8_JOIN_(a, b)
#define Q8_TEXT_(a) #a
#define Q8_TEXT(a) Q8_TEXT_(a)

extern const Variant Q8_JOIN(variant_, Q8_VARIANT);
const Variant Q8_JOIN(variant_, Q8_VARIANT) = {Q8_TEXT(Q8_VARIANT), kOrders, forward, accumulate, products,
                                                 Q8_FORWARD_FLOAT,
                                                 {Run::row_magnitudes, Run::row_sides, Run::to_grid, Run::rescale,
                                                  Run::column_sums}};
