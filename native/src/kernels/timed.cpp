#include "kernels/bfloat16.h"
#include "kernels/timed.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <type_traits>
#include <vector>

namespace equibit {

const char* const kStageNames[kStages] = {"products",       "rounding",       "filters",
                                          "edges, forward", "edges, reverse", "atoms"};

namespace {

enum Stage { kProducts, kRounding, kFilters, kEdges, kEdgesReverse, kAtoms };
using Clock = std::chrono::steady_clock;

const Kernels* measured = nullptr;
std::atomic<int64_t> spent[kStages];  // in ticks of the clock

template <typename Type>
const Kernels& owner(Type Kernels::*) {
  return *measured;
}
template <typename Type>
const HalfKernels& owner(Type HalfKernels::*) {
  return *measured->halves;
}
template <typename Type>
const Bfloat16Kernels& owner(Type Bfloat16Kernels::*) {
  return *measured->bfloat16;
}

/// Member of a table as a function that measures it.
template <auto Member, Stage At, typename Type>
struct Timed;
template <auto Member, Stage At, typename... Arguments>
struct Timed<Member, At, void (*)(Arguments...)> {
  static void call(Arguments... arguments) {
    const auto begin = Clock::now();
    (owner(Member).*Member)(arguments...);
    spent[At].fetch_add((Clock::now() - begin).count(), std::memory_order_relaxed);
  }
};

template <auto Member, Stage At, typename Table>
void time(Table& table) {
  using Type = std::remove_reference_t<decltype(table.*Member)>;
  if (table.*Member != nullptr) table.*Member = Timed<Member, At, Type>::call;
}

}  // namespace

const Kernels& timed_kernels(const Kernels& kernels) {
  static Kernels table;
  measured = &kernels;
  table = kernels;
  time<&Kernels::gemm, kProducts>(table);
  time<&Kernels::gemm_codes16, kProducts>(table);
  time<&Kernels::gemm_codes8, kProducts>(table);
  time<&Kernels::gemm_split, kProducts>(table);
  time<&Kernels::round_rows16, kRounding>(table);
  time<&Kernels::round_rows8, kRounding>(table);
  time<&Kernels::round_split, kRounding>(table);
  time<&Kernels::round_vectors, kRounding>(table);
  time<&Kernels::round_vectors_backward, kRounding>(table);
  time<&Kernels::filters, kFilters>(table);
  time<&Kernels::attention, kEdges>(table);
  time<&Kernels::edge_dots, kEdges>(table);
  time<&Kernels::edge_sums, kEdges>(table);
  time<&Kernels::attention_sums_backward, kEdgesReverse>(table);
  time<&Kernels::attention_backward, kEdgesReverse>(table);
  time<&Kernels::attention_query_backward, kEdgesReverse>(table);
  time<&Kernels::filter_gradients, kEdgesReverse>(table);
  if (kernels.halves != nullptr) {
    static HalfKernels halves;
    halves = *kernels.halves;
    time<&HalfKernels::filters, kFilters>(halves);
    time<&HalfKernels::gradients, kEdgesReverse>(halves);
    time<&HalfKernels::backward, kEdgesReverse>(halves);
    table.halves = &halves;
  }
  if (kernels.bfloat16 != nullptr) {
    static Bfloat16Kernels bfloat16;
    bfloat16 = *kernels.bfloat16;
    time<&Bfloat16Kernels::split, kRounding>(bfloat16);
    time<&Bfloat16Kernels::gemm, kProducts>(bfloat16);
    table.bfloat16 = &bfloat16;
  }
  time<&Kernels::layer_norm, kAtoms>(table);
  time<&Kernels::layer_norm_backward, kAtoms>(table);
  time<&Kernels::heads, kAtoms>(table);
  time<&Kernels::heads_backward, kAtoms>(table);
  time<&Kernels::silu, kAtoms>(table);
  time<&Kernels::silu_backward, kAtoms>(table);
  time<&Kernels::vector_dot, kAtoms>(table);
  time<&Kernels::vector_dot_backward, kAtoms>(table);
  time<&Kernels::couple, kAtoms>(table);
  time<&Kernels::couple_backward, kAtoms>(table);
  time<&Kernels::gate, kAtoms>(table);
  time<&Kernels::gate_backward, kAtoms>(table);
  time<&Kernels::rotate, kAtoms>(table);
  time<&Kernels::add, kAtoms>(table);
  return table;
}

void take_stage_seconds(double seconds[kStages]) {
  using Period = Clock::period;
  for (int stage = 0; stage < kStages; ++stage) {
    seconds[stage] = static_cast<double>(spent[stage].exchange(0)) * Period::num / Period::den;
  }
}

double float_rate(const Kernels& kernels) {
  constexpr int kRows = 12, kIn = 64, kOut = 96, kRepeats = 50, kRounds = 200;
  const std::vector<float> x(kRows * kIn, 1.0f), weight(kIn * kOut, 1.0f);
  std::vector<float> y(kRows * kOut);
  double fastest = 1e9;
  for (int round = 0; round < kRounds; ++round) {
    const auto begin = Clock::now();
    for (int repeat = 0; repeat < kRepeats; ++repeat) {
      kernels.gemm(kRows, kIn, kOut, x.data(), kIn, weight.data(), nullptr, y.data(), kOut, false);
    }
    fastest = std::min(fastest, std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return kRepeats * static_cast<double>(kRows * kIn * kOut) / fastest;
}

}  // namespace equibit
