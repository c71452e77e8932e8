// The AVX-512 table with products of codes on the tile registers of AMX.
//
// A tile of inputs is 16 rows of 64 codes; a tile of weights is 16 words of 16 output channels, which
// is half of a packed panel as it lies in memory. Sums are exact integers, and what follows them is
// the arithmetic of `codes.inc`, so results equal those of the AVX-512 table to the last bit.

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#include <immintrin.h>

#include "kernels/kernels.h"

namespace equibit {
namespace {

#define EQUIBIT_INLINE inline __attribute__((always_inline))
#define EQUIBIT_INLINE_LAMBDA __attribute__((always_inline))

constexpr int kPanel = 32;
constexpr int kTile = 16;

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

/// What the tile registers of this thread are set up for: 100·rows + words, or 0.
thread_local int configured = 0;

// 0–5: sums of each plane and half of a panel; 6: inputs; 7: weights.
void configure(int rows, int words) {
  if (configured == 100 * rows + words) return;
  configured = 100 * rows + words;
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.bytes[tile] = static_cast<uint16_t>(tile == 6 ? 4 * words : 64);
    config.rows[tile] = static_cast<uint8_t>(tile == 7 ? words : rows);
  }
  _tile_loadconfig(&config);
}

void release() {
  if (configured == 0) return;
  configured = 0;
  _tile_release();
}

/// Sums over a run of words for 16 rows and one panel. Shape: sums [planes][2][16][16].
template <int Planes>
EQUIBIT_INLINE void sum_tiles(const int32_t* x, int plane, int64_t stride, const int32_t* weight,
                              int words, int step, int32_t* sums) {
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (Planes > 1) {
    _tile_zero(2);
    _tile_zero(3);
  }
  if constexpr (Planes > 2) {
    _tile_zero(4);
    _tile_zero(5);
  }
  for (int word = 0; word < words; word += step) {
    const int32_t* w = weight + word * kPanel;
    // Tiles are named by literals. The first plane of several is signed.
#define EQUIBIT_HALF(AT, FIRST, SECOND, THIRD)              \
  _tile_loadd(7, w + (AT), kPanel * 4);                     \
  _tile_loadd(6, x + word, stride * 4);                     \
  if constexpr (Planes == 1) {                              \
    _tile_dpbusd(FIRST, 6, 7);                              \
  } else {                                                  \
    _tile_dpbssd(FIRST, 6, 7);                              \
    _tile_loadd(6, x + plane + word, stride * 4);           \
    _tile_dpbusd(SECOND, 6, 7);                             \
  }                                                         \
  if constexpr (Planes > 2) {                               \
    _tile_loadd(6, x + 2 * plane + word, stride * 4);       \
    _tile_dpbusd(THIRD, 6, 7);                              \
  }
    EQUIBIT_HALF(0, 0, 2, 4)
    EQUIBIT_HALF(kTile, 1, 3, 5)
#undef EQUIBIT_HALF
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 256, 64);
  if constexpr (Planes > 1) {
    _tile_stored(2, sums + 512, 64);
    _tile_stored(3, sums + 768, 64);
  }
  if constexpr (Planes > 2) {
    _tile_stored(4, sums + 1024, 64);
    _tile_stored(5, sums + 1280, 64);
  }
}

/// One row of a panel: (Σ_g step_g · sum_g) · scale + bias, stored or added.
EQUIBIT_INLINE void finish_row(__m512 low, __m512 high, float scale,
                                                      const float* bias, float* y, int valid,
                                                      bool add) {
  const __m512 factor = _mm512_set1_ps(scale);
  const auto part = [&](__m512 x, int at) EQUIBIT_INLINE_LAMBDA {
    const int left = valid - at;
    if (left <= 0) return;
    const __mmask16 mask = left >= 16 ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
    x = _mm512_mul_ps(x, factor);
    if (bias != nullptr) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(mask, bias + at));
    if (add) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(mask, y + at));
    _mm512_mask_storeu_ps(y + at, mask, x);
  };
  part(low, 0);
  part(high, 16);
}

/// The sum of one row and half of a panel over its planes.
template <int Planes>
EQUIBIT_INLINE __m512 total_of(const int32_t* sum, __m512i offset) {
  __m512i whole = _mm512_load_si512(sum);
  if constexpr (Planes == 1) return _mm512_cvtepi32_ps(_mm512_add_epi32(whole, offset));
  const __m512i next = _mm512_load_si512(sum + 512);
  if constexpr (Planes == 2) {
    return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(whole, 8), next));
  }
  const __m512i low = _mm512_add_epi32(_mm512_slli_epi32(next, 8), _mm512_load_si512(sum + 1024));
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), _mm512_set1_ps(65536.0f),
                         _mm512_cvtepi32_ps(low));
}

template <int Planes>
void product(const CodeProduct& p) {
  const bool grouped = p.group_words < p.words;
  const int run = grouped ? p.group_words : p.words;
  const int step = run < kTile ? run : kTile;
  const int64_t stride = static_cast<int64_t>(Planes) * p.words;
  alignas(64) int32_t sums[Planes * 512];
  alignas(64) float kept[kTile * kPanel];
  for (int64_t begin = 0; begin < p.rows; begin += kTile) {
    const int rows = static_cast<int>(p.rows - begin < kTile ? p.rows - begin : kTile);
    const int32_t* x = p.x + begin * stride;
    configure(rows, step);
    for (int first = 0, panel = 0; first < p.out; first += kPanel, ++panel) {
      const int32_t* weight = p.weight + static_cast<int64_t>(panel) * p.words * kPanel;
      const int valid = p.out - first;
      for (int group = 0, word = 0; group < p.groups; ++group, word += run) {
        sum_tiles<Planes>(x + word, p.words, stride, weight + word * kPanel, run, step, sums);
        const int64_t row = (static_cast<int64_t>(panel) * p.groups + group) * kPanel;
        const __m512 step_low = _mm512_loadu_ps(p.steps + row);
        const __m512 step_high = _mm512_loadu_ps(p.steps + row + kTile);
        const __m512i offset_low = _mm512_loadu_si512(p.offsets + row);
        const __m512i offset_high = _mm512_loadu_si512(p.offsets + row + kTile);
        for (int r = 0; r < rows; ++r) {
          const __m512 a = total_of<Planes>(sums + r * kTile, offset_low);
          const __m512 b = total_of<Planes>(sums + 256 + r * kTile, offset_high);
          float* before = kept + r * kPanel;
          __m512 low = _mm512_mul_ps(a, step_low), high = _mm512_mul_ps(b, step_high);
          if (group > 0) {
            low = _mm512_fmadd_ps(a, step_low, _mm512_load_ps(before));
            high = _mm512_fmadd_ps(b, step_high, _mm512_load_ps(before + kTile));
          }
          if (group + 1 < p.groups) {
            _mm512_store_ps(before, low);
            _mm512_store_ps(before + kTile, high);
            continue;
          }
          const int64_t at = begin + r;
          const int64_t z = p.bias_index != nullptr ? p.bias_index[at] : 0;
          const float* bias = p.bias != nullptr ? p.bias + z * p.out + first : nullptr;
          finish_row(low, high, p.scales[at], bias, p.y + at * p.ldy + first, valid, p.add);
        }
      }
    }
  }
}

void gemm_split(const CodeProduct& p) {
  if (p.planes == 2) {
    product<2>(p);
  } else {
    product<3>(p);
  }
}

void gemm_codes8(const CodeProduct& p) {
  if (split_fits(p.words, p.group_words)) {
    product<1>(p);
  } else {
    avx512_kernels().gemm_codes8(p);
  }
}

inline __mmask16 lanes_left(int left) {
  return left >= 16 ? 0xffff : (left > 0 ? static_cast<__mmask16>((1u << left) - 1) : 0);
}

/// Writes 16 codes: shifted by 128, or planes of bytes from the highest to the lowest.
template <int Planes>
EQUIBIT_INLINE void store_codes(__m512i code, uint8_t* out, int64_t stride) {
  if constexpr (Planes == 1) code = _mm512_add_epi32(code, _mm512_set1_epi32(128));
  for (int plane = 0; plane < Planes; ++plane) {
    const __m512i part = _mm512_srai_epi32(code, 8 * (Planes - 1 - plane));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + plane * stride), _mm512_cvtepi32_epi8(part));
  }
}

/// Codes of one row. Blocks of 16 are held in registers where their number is known.
template <int Planes, int Blocks, bool Centered, bool Scaled>
EQUIBIT_INLINE float round_row(const CodeRows& p, const float* in, const float* center,
                               uint8_t* out) {
  const int64_t stride = 4 * static_cast<int64_t>(p.words);
  const int blocks = Blocks > 0 ? Blocks : (p.n + 15) / 16;
  const auto value = [&](int block) EQUIBIT_INLINE_LAMBDA {
    const int c = 16 * block;
    const __mmask16 mask = Blocks > 0 ? 0xffff : lanes_left(p.n - c);
    __m512 x = _mm512_maskz_loadu_ps(mask, in + c);
    if constexpr (Centered) x = _mm512_sub_ps(x, _mm512_maskz_loadu_ps(mask, center + c));
    if constexpr (Scaled) x = _mm512_mul_ps(x, _mm512_maskz_loadu_ps(mask, p.factors + c));
    return x;
  };
  __m512 held[Blocks > 0 ? Blocks : 1];
  __m512 most = _mm512_set1_ps(1e-30f);
  for (int block = 0; block < blocks; ++block) {
    const __m512 x = value(block);
    if constexpr (Blocks > 0) held[block] = x;
    most = _mm512_max_ps(most, _mm512_abs_ps(x));
  }
  const float largest = _mm512_reduce_max_ps(most);
  const __m512 inverse = _mm512_set1_ps(static_cast<float>(p.highest) / largest);
  for (int block = 0; block < blocks; ++block) {
    const __m512 x = Blocks > 0 ? held[Blocks > 0 ? block : 0] : value(block);
    store_codes<Planes>(_mm512_cvtps_epi32(_mm512_mul_ps(x, inverse)), out + 16 * block, stride);
  }
  for (int64_t c = 16 * static_cast<int64_t>(blocks); c < stride; c += 16) {
    store_codes<Planes>(_mm512_setzero_si512(), out + c, stride);
  }
  return largest / static_cast<float>(p.highest);
}

template <int Planes, bool Centered, bool Scaled>
void round_bytes_of(const CodeRows& p) {
  const int64_t stride = 4 * static_cast<int64_t>(p.words) * Planes;
  auto* out = reinterpret_cast<uint8_t*>(p.codes);
  for (int64_t r = 0; r < p.rows; ++r, out += stride) {
    const float* in = p.x + r * p.ldx;
    const float* center = Centered ? p.centers + static_cast<int64_t>(p.species[r]) * p.n : nullptr;
    if (p.n == 64) {
      p.scales[r] = round_row<Planes, 4, Centered, Scaled>(p, in, center, out);
    } else if (p.n == 128) {
      p.scales[r] = round_row<Planes, 8, Centered, Scaled>(p, in, center, out);
    } else {
      p.scales[r] = round_row<Planes, 0, Centered, Scaled>(p, in, center, out);
    }
  }
}

template <int Planes>
void round_bytes(const CodeRows& p) {
  if (p.centers != nullptr) {
    round_bytes_of<Planes, true, false>(p);
  } else if (p.factors != nullptr) {
    round_bytes_of<Planes, false, true>(p);
  } else {
    round_bytes_of<Planes, false, false>(p);
  }
}

void round_split(const CodeRows& p) {
  if (p.highest <= 32767) {
    round_bytes<2>(p);
  } else {
    round_bytes<3>(p);
  }
}

void round_rows8(const CodeRows& p) {
  if (p.words % 4 == 0) {
    round_bytes<1>(p);
  } else {
    avx512_kernels().round_rows8(p);
  }
}

}  // namespace

bool amx_permitted() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

const Kernels& amx_kernels() {
  static const Kernels table = [] {
    Kernels kernels = avx512_kernels();
    kernels.name = "amx";
    kernels.gemm_codes8 = gemm_codes8;
    kernels.gemm_split = gemm_split;
    kernels.round_rows8 = round_rows8;
    kernels.round_split = round_split;
    kernels.release = release;
    return kernels;
  }();
  return table;
}

}  // namespace equibit
