// Products of bfloat16 numbers by AVX512-BF16.

#include "kernels/bfloat16.h"

#include <immintrin.h>

#include <cstdint>

namespace equibit {
namespace {

#define EQUIBIT_INLINE inline __attribute__((always_inline))
#define EQUIBIT_INLINE_LAMBDA __attribute__((always_inline))

typedef int32_t Word __attribute__((may_alias));
typedef __m256i_u Numbers __attribute__((may_alias));

constexpr int kPanel = 32;
constexpr int kMostRows = 12;

EQUIBIT_INLINE __mmask16 lanes_left(int64_t left) {
  return left >= 16 ? 0xffff : (left > 0 ? static_cast<__mmask16>((1u << left) - 1) : 0);
}

template <int Planes, bool Centered>
void split_rows(const CodeRows& p) {
  const int64_t numbers = 2 * static_cast<int64_t>(p.words);
  auto* out = reinterpret_cast<char*>(p.codes);
  for (int64_t r = 0; r < p.rows; ++r, out += 2 * numbers * Planes) {
    const float* in = p.x + r * p.ldx;
    const float* center = Centered ? p.centers + static_cast<int64_t>(p.species[r]) * p.n : nullptr;
    for (int64_t c = 0; c < numbers; c += 16) {
      const __mmask16 mask = lanes_left(p.n - c);
      __m512 rest = _mm512_maskz_loadu_ps(mask, in + c);
      if constexpr (Centered) rest = _mm512_sub_ps(rest, _mm512_maskz_loadu_ps(mask, center + c));
      for (int plane = 0; plane < Planes; ++plane) {
        const auto rounded = (__m256i)_mm512_cvtneps_pbh(rest);
        *reinterpret_cast<Numbers*>(out + 2 * (plane * numbers + c)) = rounded;
        const __m512i bits = _mm512_slli_epi32(_mm512_cvtepu16_epi32(rounded), 16);
        rest = _mm512_sub_ps(rest, _mm512_castsi512_ps(bits));
      }
    }
  }
}

template <int Planes>
void split_as(const CodeRows& p) {
  if (p.centers != nullptr) {
    split_rows<Planes, true>(p);
  } else {
    split_rows<Planes, false>(p);
  }
}

void split(const CodeRows& p, int planes) {
  switch (planes) {
    case 1:
      return split_as<1>(p);
    case 2:
      return split_as<2>(p);
    default:
      return split_as<3>(p);
  }
}

/// Half a panel of one row, from what it starts with.
EQUIBIT_INLINE void store_half(const CodeProduct& p, int64_t row, int first, __m512 sum) {
  const __mmask16 mask = lanes_left(p.out - first);
  float* y = p.y + row * p.ldy + first;
  if (p.bias != nullptr) {
    const int64_t at = p.bias_index != nullptr ? p.bias_index[row] : 0;
    sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, p.bias + at * p.out + first));
  }
  if (p.add) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, y));
  _mm512_mask_storeu_ps(y, mask, sum);
}

template <int R>
void gemm_rows(const CodeProduct& p, int64_t begin, int first) {
  const int words = p.words;
  const int32_t* x = p.x + begin * words;
  const int32_t* weight = p.weight + static_cast<int64_t>(first / kPanel) * words * kPanel;
  __m512 low[R], high[R];
  for (int r = 0; r < R; ++r) low[r] = high[r] = _mm512_setzero_ps();
  for (int word = 0; word < words; ++word) {
    const auto a = (__m512bh)_mm512_loadu_si512(weight + word * kPanel);
    const auto b = (__m512bh)_mm512_loadu_si512(weight + word * kPanel + 16);
    for (int r = 0; r < R; ++r) {
      const auto pair = (__m512bh)_mm512_set1_epi32(
          *reinterpret_cast<const Word*>(x + static_cast<int64_t>(r) * words + word));
      low[r] = _mm512_dpbf16_ps(low[r], pair, a);
      high[r] = _mm512_dpbf16_ps(high[r], pair, b);
    }
  }
  for (int r = 0; r < R; ++r) {
    store_half(p, begin + r, first, low[r]);
    store_half(p, begin + r, first + 16, high[r]);
  }
}

void gemm(const CodeProduct& p) {
  const int64_t blocks = (p.rows + kMostRows - 1) / kMostRows;
  for (int first = 0; first < p.out; first += kPanel) {
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t begin = p.rows * block / blocks, end = p.rows * (block + 1) / blocks;
      switch (end - begin) {
#define EQUIBIT_ROWS(R)            \
  case R:                          \
    gemm_rows<R>(p, begin, first); \
    break;
        EQUIBIT_ROWS(1)
        EQUIBIT_ROWS(2)
        EQUIBIT_ROWS(3)
        EQUIBIT_ROWS(4)
        EQUIBIT_ROWS(5)
        EQUIBIT_ROWS(6)
        EQUIBIT_ROWS(7)
        EQUIBIT_ROWS(8)
        EQUIBIT_ROWS(9)
        EQUIBIT_ROWS(10)
        EQUIBIT_ROWS(11)
        EQUIBIT_ROWS(12)
#undef EQUIBIT_ROWS
        default:
          break;
      }
    }
  }
}

}  // namespace

const Bfloat16Kernels& bfloat16_kernels() {
  // More planes would cost more than products in float32.
  static constexpr Bfloat16Kernels table = {
      .most_planes = 1, .words_per_row = 8, .split = split, .gemm = gemm};
  return table;
}

}  // namespace equibit
