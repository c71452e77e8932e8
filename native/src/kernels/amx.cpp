// The AVX-512 table with products of codes on the tile registers of AMX.
//
// A tile of inputs is 16 rows of 64 codes; a tile of weights is 16 words of 16 output channels,
// which is half of a packed panel as it lies in memory. Sums are exact integers.

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

#include <immintrin.h>

#include "kernels/bfloat16.h"
#include "kernels/kernels.h"
#include "kernels/tiles.h"

namespace equibit {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

/// Words per tile that the registers of this thread are set up for, or 0.
thread_local int configured = 0;

// 0–2: sums of each plane; 3: weights; 4–7: inputs. Always of all rows, what lies beyond the last
// being nobody's: to set tiles up anew costs as much as a few products.
void configure(int words) {
  if (configured == words) return;
  configured = words;
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.bytes[tile] = static_cast<uint16_t>(tile >= 4 ? 4 * words : 64);
    config.rows[tile] = static_cast<uint8_t>(tile == 3 ? words : kTile);
  }
  // GCC believes that only the first eight bytes are read, and would not write the others.
  asm volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

void release() {
  if (configured == 0) return;
  configured = 0;
  _tile_release();
}

/// Adds products of one plane. The highest plane is signed.
template <int Plane, int Tile>
EQUIBIT_INLINE void add_products() {
#define EQUIBIT_ADD(TILE)                               \
  if constexpr (Tile == (TILE)) {                       \
    if constexpr (Plane == 0) _tile_dpbssd(0, TILE, 3); \
    if constexpr (Plane == 1) _tile_dpbusd(1, TILE, 3); \
    if constexpr (Plane == 2) _tile_dpbusd(2, TILE, 3); \
  }
  EQUIBIT_ADD(4)
  EQUIBIT_ADD(5)
  EQUIBIT_ADD(6)
  EQUIBIT_ADD(7)
#undef EQUIBIT_ADD
}

/// Loads all inputs of a block of rows, `Steps` tiles of each plane.
template <int Planes, int Steps>
EQUIBIT_INLINE void hold_inputs(const int32_t* x, int plane, int64_t stride) {
  each<Steps>([&]<int Step>() EQUIBIT_INLINE_LAMBDA {
    each<Planes>([&]<int Plane>() EQUIBIT_INLINE_LAMBDA {
      load_input<4 + Step * Planes + Plane>(x + Plane * plane + Step * kTile, stride);
    });
  });
}

/// Sums over a run of words for one half of a panel, of inputs that are held where Steps > 0.
/// Shape: sums [planes][16][16].
template <int Planes, int Steps>
EQUIBIT_INLINE void sum_tiles(const int32_t* x, int plane, int64_t stride, const int32_t* weight,
                              int words, int step, int32_t* sums) {
  _tile_zero(0);
  if constexpr (Planes > 1) _tile_zero(1);
  if constexpr (Planes > 2) _tile_zero(2);
  if constexpr (Steps > 0) {
    each<Steps>([&]<int Step>() EQUIBIT_INLINE_LAMBDA {
      _tile_loadd(3, weight + Step * kTile * kPanel, kPanel * 4);
      each<Planes>([&]<int Plane>()
                       EQUIBIT_INLINE_LAMBDA { add_products<Plane, 4 + Step * Planes + Plane>(); });
    });
  } else {
    for (int word = 0; word < words; word += step) {
      _tile_loadd(3, weight + word * kPanel, kPanel * 4);
      each<Planes>([&]<int Plane>() EQUIBIT_INLINE_LAMBDA {
        load_input<4 + Plane>(x + Plane * plane + word, stride);
        add_products<Plane, 4 + Plane>();
      });
    }
  }
  _tile_stored(0, sums, 64);
  if constexpr (Planes > 1) _tile_stored(1, sums + kSums, 64);
  if constexpr (Planes > 2) _tile_stored(2, sums + 2 * kSums, 64);
}

/// The sum of one row and half of a panel over its planes.
template <int Planes>
EQUIBIT_INLINE __m512 total_of(const int32_t* sum) {
  __m512i whole = _mm512_load_si512(sum);
  if constexpr (Planes == 1) return _mm512_cvtepi32_ps(whole);
  const __m512i next = _mm512_load_si512(sum + kSums);
  if constexpr (Planes == 2) {
    return _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(whole, 8), next));
  }
  const __m512i last = _mm512_load_si512(sum + 2 * kSums);
  const __m512i low = _mm512_add_epi32(_mm512_slli_epi32(next, 8), last);
  return _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), _mm512_set1_ps(65536.0f),
                         _mm512_cvtepi32_ps(low));
}

/// Rows of half a panel: (Σ_g step_g · sum_g) · scale + bias, stored or added. What `p` says is
/// read once, since the compiler cannot know that results do not overwrite it.
template <int Planes, bool Grouped, bool Indexed, bool Add, bool Whole>
EQUIBIT_INLINE void finish_rows(const CodeProduct& p, int64_t begin, int rows, int first,
                                const float* steps, int groups, const int32_t* sums) {
  const int left = p.out - first, out = p.out;
  const __mmask16 mask = Whole ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
  const auto load = [&](const float* from) EQUIBIT_INLINE_LAMBDA {
    return Whole ? _mm512_loadu_ps(from) : _mm512_maskz_loadu_ps(mask, from);
  };
  const __m512 step = _mm512_loadu_ps(steps);
  const float* bias = p.bias != nullptr ? p.bias + first : nullptr;
  const __m512 same = bias != nullptr && !Indexed ? load(bias) : _mm512_setzero_ps();
  const int32_t* index = Indexed ? p.bias_index + begin : nullptr;
  const float* scales = p.scales + begin;
  const int64_t ldy = p.ldy;
  float* y = p.y + begin * ldy + first;
  for (int r = 0; r < rows; ++r, y += ldy, sums += kTile) {
    __m512 sum = _mm512_mul_ps(total_of<Planes>(sums), step);
    if constexpr (Grouped) {
      for (int group = 1; group < groups; ++group) {
        sum = _mm512_fmadd_ps(total_of<Planes>(sums + group * Planes * kSums),
                              _mm512_loadu_ps(steps + group * kPanel), sum);
      }
    }
    const __m512 start = Indexed ? load(bias + index[r] * static_cast<int64_t>(out)) : same;
    sum = _mm512_fmadd_ps(sum, _mm512_set1_ps(scales[r]), start);
    if constexpr (Add) sum = _mm512_add_ps(sum, load(y));
    if constexpr (Whole) {
      _mm512_storeu_ps(y, sum);
    } else {
      _mm512_mask_storeu_ps(y, mask, sum);
    }
  }
}

template <int Planes, bool Grouped>
EQUIBIT_INLINE void finish(const CodeProduct& p, int64_t begin, int rows, int first,
                           const float* steps, int groups, const int32_t* sums) {
  const auto with = [&]<bool Indexed, bool Add>() EQUIBIT_INLINE_LAMBDA {
    if (p.out - first >= 16) {
      finish_rows<Planes, Grouped, Indexed, Add, true>(p, begin, rows, first, steps, groups, sums);
    } else {
      finish_rows<Planes, Grouped, Indexed, Add, false>(p, begin, rows, first, steps, groups, sums);
    }
  };
  if (p.bias_index != nullptr) {
    p.add ? with.template operator()<true, true>() : with.template operator()<true, false>();
  } else {
    p.add ? with.template operator()<false, true>() : with.template operator()<false, false>();
  }
}

/// Asks for the weights of half a panel.
template <int Steps>
EQUIBIT_INLINE void prefetch(const int32_t* weight) {
  for (int word = 0; word < Steps * kTile; ++word) {
    _mm_prefetch(reinterpret_cast<const char*>(weight + word * kPanel), _MM_HINT_T0);
  }
}

/// Tiles of half a panel are under way while the half before is finished.
template <int Planes, int Steps, bool Grouped>
void product(const CodeProduct& p) {
  constexpr int kBuffer = Planes * kSums * (Grouped ? kMostGroups : 1);
  const int run = Grouped ? p.group_words : p.words;
  const int step = run < kTile ? run : kTile;
  const int64_t stride = static_cast<int64_t>(Planes) * p.words;
  const int halves = (p.out + kTile - 1) / kTile;
  alignas(64) int32_t sums[2][kBuffer];
  for (int64_t begin = 0; begin < p.rows; begin += kTile) {
    const int rows = static_cast<int>(p.rows - begin < kTile ? p.rows - begin : kTile);
    const int32_t* x = p.x + begin * stride;
    configure(step);
    if constexpr (Steps > 0) hold_inputs<Planes, Steps>(x, p.words, stride);
    for (int half = 0; half <= halves; ++half) {
      if (half < halves) {
        const int64_t panel = half / 2;
        const int32_t* weight = p.weight + panel * p.words * kPanel + half % 2 * kTile;
        if constexpr (Steps > 0) prefetch<Steps>(weight + p.words * kPanel);
        for (int group = 0, word = 0; group < (Grouped ? p.groups : 1); ++group, word += run) {
          sum_tiles<Planes, Steps>(x + word, p.words, stride, weight + word * kPanel, run, step,
                                   sums[half % 2] + group * Planes * kSums);
        }
      }
      if (half > 0) {
        const int64_t panel = (half - 1) / 2;
        const float* steps = p.steps + panel * p.groups * kPanel + (half - 1) % 2 * kTile;
        finish<Planes, Grouped>(p, begin, rows, (half - 1) * kTile, steps, p.groups,
                                sums[(half - 1) % 2]);
      }
    }
  }
}

template <int Planes>
void product_of(const CodeProduct& p) {
  if (p.groups > 1) return product<Planes, 0, true>(p);
  if (p.words == kTile) return product<Planes, 1, false>(p);
  if constexpr (2 * Planes <= kHeld) {
    if (p.words == 2 * kTile) return product<Planes, 2, false>(p);
  }
  product<Planes, 0, false>(p);
}

void gemm_split(const CodeProduct& p) {
  switch (p.planes) {
    case 1:
      return product_of<1>(p);
    case 2:
      return product_of<2>(p);
    default:
      return product_of<3>(p);
  }
}

/// 64 bytes in the order of what was packed, which goes by quarters of a register.
EQUIBIT_INLINE __m512i in_order(__m512i packed) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, packed);
}

/// The signed bytes that 64 codes are, shifted right.
template <int Shift>
EQUIBIT_INLINE __m512i highest_bytes(const __m512i* codes) {
  const auto part = [&](int k) EQUIBIT_INLINE_LAMBDA {
    return Shift > 0 ? _mm512_srai_epi32(codes[k], Shift) : codes[k];
  };
  return in_order(_mm512_packs_epi16(_mm512_packs_epi32(part(0), part(1)),
                                     _mm512_packs_epi32(part(2), part(3))));
}

/// The two lower bytes of 64 codes, the upper one being signed in codes of 16 bits.
template <bool Signed>
EQUIBIT_INLINE void lower_bytes(const __m512i* codes, __m512i* upper, __m512i* lower) {
  const auto pair = [&](int k) EQUIBIT_INLINE_LAMBDA {
    if constexpr (Signed) return _mm512_packs_epi32(codes[k], codes[k + 1]);
    const __m512i mask = _mm512_set1_epi32(0xffff);
    return _mm512_packus_epi32(_mm512_and_si512(codes[k], mask),
                               _mm512_and_si512(codes[k + 1], mask));
  };
  const __m512i low = pair(0), high = pair(2), mask = _mm512_set1_epi16(0xff);
  *lower = in_order(_mm512_packus_epi16(_mm512_and_si512(low, mask), _mm512_and_si512(high, mask)));
  *upper =
      in_order(Signed ? _mm512_packs_epi16(_mm512_srai_epi16(low, 8), _mm512_srai_epi16(high, 8))
                      : _mm512_packus_epi16(_mm512_srli_epi16(low, 8), _mm512_srli_epi16(high, 8)));
}

/// Codes of one row. Blocks of 16 channels are held in registers where their number is known.
template <int Planes, int Blocks, bool Centered, bool Scaled>
EQUIBIT_INLINE float round_row(const CodeRows& p, const float* in, const float* center,
                               uint8_t* out) {
  const int n = Blocks > 0 ? 16 * Blocks : p.n;
  const int stride = 4 * p.words;
  const auto value = [&](int c) EQUIBIT_INLINE_LAMBDA {
    const int left = n - c;
    const auto mask =
        static_cast<__mmask16>(left >= 16 ? 0xffff : (left > 0 ? (1u << left) - 1 : 0));
    __m512 x = _mm512_maskz_loadu_ps(mask, in + c);
    if constexpr (Centered) x = _mm512_sub_ps(x, _mm512_maskz_loadu_ps(mask, center + c));
    if constexpr (Scaled) x = _mm512_mul_ps(x, _mm512_maskz_loadu_ps(mask, p.factors + c));
    return x;
  };
  constexpr int kLargerSize = 0b1011;  // the larger of two magnitudes
  __m512 held[Blocks > 0 ? Blocks : 1];
  __m512 most = _mm512_set1_ps(1e-30f);
  for (int c = 0; c < n; c += 16) {
    const __m512 x = value(c);
    if constexpr (Blocks > 0) held[c / 16] = x;
    most = _mm512_range_ps(most, x, kLargerSize);
  }
  const float largest = _mm512_reduce_max_ps(most);
  const __m512 inverse = _mm512_set1_ps(static_cast<float>(p.highest) / largest);
  const int runs = Blocks > 0 ? (Blocks + 3) / 4 : (stride + 63) / 64;
#pragma GCC unroll 4
  for (int run = 0; run < runs; ++run) {
    __m512i codes[4];
    for (int k = 0; k < 4; ++k) {
      const int block = 4 * run + k;
      if (Blocks > 0 && block >= Blocks) {
        codes[k] = _mm512_setzero_si512();
      } else {
        const __m512 x = Blocks > 0 ? held[block] : value(16 * block);
        codes[k] = _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse));
      }
    }
    const int left = stride - 64 * run;
    const __mmask64 mask =
        (Blocks > 0 && Blocks % 4 == 0) || left >= 64 ? ~0ull : (1ull << left) - 1;
    const auto store = [&](int plane, __m512i bytes) EQUIBIT_INLINE_LAMBDA {
      _mm512_mask_storeu_epi8(out + plane * stride + 64 * run, mask, bytes);
    };
    if constexpr (Planes != 2) store(0, highest_bytes<8 * (Planes - 1)>(codes));
    if constexpr (Planes > 1) {
      __m512i upper, lower;
      lower_bytes<Planes == 2>(codes, &upper, &lower);
      store(Planes - 2, upper);
      store(Planes - 1, lower);
    }
  }
  return largest / static_cast<float>(p.highest);
}

template <int Planes, bool Centered, bool Scaled>
void round_bytes_of(const CodeRows& p) {
  const auto with_blocks = [&]<int Blocks>() EQUIBIT_INLINE_LAMBDA {
    const int64_t stride = 4 * static_cast<int64_t>(p.words) * Planes;
    auto* out = reinterpret_cast<uint8_t*>(p.codes);
    for (int64_t r = 0; r < p.rows; ++r, out += stride) {
      const float* center =
          Centered ? p.centers + p.species[r] * static_cast<int64_t>(p.n) : nullptr;
      p.scales[r] = round_row<Planes, Blocks, Centered, Scaled>(p, p.x + r * p.ldx, center, out);
    }
  };
  switch (p.n) {
    case 32:
      return with_blocks.template operator()<2>();
    case 64:
      return with_blocks.template operator()<4>();
    case 96:
      return with_blocks.template operator()<6>();
    case 128:
      return with_blocks.template operator()<8>();
    case 160:
      return with_blocks.template operator()<10>();
    case 256:
      return with_blocks.template operator()<16>();
    default:
      return with_blocks.template operator()<0>();
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
  if (p.highest <= 127) {
    round_bytes<1>(p);
  } else if (p.highest <= 32767) {
    round_bytes<2>(p);
  } else {
    round_bytes<3>(p);
  }
}

}  // namespace

void configure_tiles(int words) { configure(words); }

bool amx_permitted() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

const Kernels& amx_kernels() {
  static const Kernels table = [] {
    Kernels kernels = avx512_kernels();
    kernels.name = "amx";
    kernels.gemm_split = gemm_split;
    kernels.round_split = round_split;
    kernels.release = release;
    kernels.halves = find_half_kernels();
    kernels.bfloat16 = find_bfloat16_tile_kernels();
    return kernels;
  }();
  return table;
}

}  // namespace equibit
