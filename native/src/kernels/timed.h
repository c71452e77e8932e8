// Where the time goes: a table of kernels that measures another one.
#pragma once

#include "kernels/kernels.h"

namespace equibit {

/// A table that does what `kernels` does and adds up the time, of all threads. One table is
/// measured at a time; `kernels` must outlive it. Timing costs some 20 ns a call.
const Kernels& timed_kernels(const Kernels& kernels);

inline constexpr int kStages = 6;
extern const char* const kStageNames[kStages];

/// Seconds per stage since the last call, which are then forgotten.
void take_stage_seconds(double seconds[kStages]);

/// Multiply-adds per second that float products of small matrices reach, which is close to what the
/// processor can.
double float_rate(const Kernels& kernels);

}  // namespace equibit
