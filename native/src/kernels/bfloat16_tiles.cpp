// Products of bfloat16 numbers on the tile registers of AMX.
//
// A tile of inputs is 16 rows of 32 numbers; a tile of weights is 16 words of 16 output channels,
// which is half of a packed panel as it lies in memory. All planes of a row are summed in one
// float32 tile.

#include <immintrin.h>

#include <cstdint>

#include "kernels/bfloat16.h"
#include "kernels/tiles.h"

namespace equibit {
namespace {

// 0 and 1: sums of the halves of a panel; 2 and 3: their weights; 4–7: inputs.
template <int Tile, bool Both>
EQUIBIT_INLINE void add_products() {
#define EQUIBIT_ADD(TILE)                           \
  if constexpr (Tile == (TILE)) {                   \
    _tile_dpbf16ps(0, TILE, 2);                     \
    if constexpr (Both) _tile_dpbf16ps(1, TILE, 3); \
  }
  EQUIBIT_ADD(4)
  EQUIBIT_ADD(5)
  EQUIBIT_ADD(6)
  EQUIBIT_ADD(7)
#undef EQUIBIT_ADD
}

/// Sums of one panel, or of its first half, of inputs that are held where Steps > 0.
/// Shape: sums [2][16][16].
template <int Planes, int Steps, bool Both>
EQUIBIT_INLINE void sum_panel(const CodeProduct& p, const int32_t* x, const int32_t* weight,
                              float* sums) {
  const auto load_weights = [&](int word) EQUIBIT_INLINE_LAMBDA {
    _tile_loadd(2, weight + word * kPanel, kPanel * 4);
    if constexpr (Both) _tile_loadd(3, weight + word * kPanel + kTile, kPanel * 4);
  };
  _tile_zero(0);
  if constexpr (Both) _tile_zero(1);
  if constexpr (Steps > 0) {
    each<Steps>([&]<int Step>() EQUIBIT_INLINE_LAMBDA {
      load_weights(Step * kTile);
      each<Planes>([&]<int Plane>()
                       EQUIBIT_INLINE_LAMBDA { add_products<4 + Step * Planes + Plane, Both>(); });
    });
  } else {
    for (int word = 0; word < p.words; word += kTile) {
      load_weights(word);
      each<Planes>([&]<int Plane>() EQUIBIT_INLINE_LAMBDA {
        load_input<4 + Plane>(x + Plane * p.words + word, static_cast<int64_t>(Planes) * p.words);
        add_products<4 + Plane, Both>();
      });
    }
  }
  _tile_stored(0, sums, 64);
  if constexpr (Both) _tile_stored(1, sums + kSums, 64);
}

/// Half a panel of some rows, stored or added. What `p` says is read once, since the compiler
/// cannot know that results do not overwrite it.
template <bool Indexed, bool Add>
EQUIBIT_INLINE void finish_half(const CodeProduct& p, int64_t begin, int rows, int first,
                                const float* sums) {
  const int left = p.out - first, out = p.out;
  const auto mask = static_cast<__mmask16>(left >= kTile ? 0xffff : (1u << left) - 1);
  const float* bias = p.bias != nullptr ? p.bias + first : nullptr;
  const __m512 same =
      bias != nullptr && !Indexed ? _mm512_maskz_loadu_ps(mask, bias) : _mm512_setzero_ps();
  const int32_t* index = Indexed ? p.bias_index + begin : nullptr;
  const int64_t ldy = p.ldy;
  float* y = p.y + begin * ldy + first;
  for (int r = 0; r < rows; ++r, y += ldy, sums += kTile) {
    const __m512 start =
        Indexed ? _mm512_maskz_loadu_ps(mask, bias + index[r] * static_cast<int64_t>(out)) : same;
    __m512 sum = _mm512_add_ps(_mm512_load_ps(sums), start);
    if constexpr (Add) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, y));
    _mm512_mask_storeu_ps(y, mask, sum);
  }
}

template <bool Indexed, bool Add>
void finish_panel(const CodeProduct& p, int64_t begin, int rows, int first, const float* sums) {
  finish_half<Indexed, Add>(p, begin, rows, first, sums);
  if (p.out - first > kTile) {
    finish_half<Indexed, Add>(p, begin, rows, first + kTile, sums + kSums);
  }
}

void finish(const CodeProduct& p, int64_t begin, int rows, int first, const float* sums) {
  if (p.bias != nullptr && p.bias_index != nullptr) {
    p.add ? finish_panel<true, true>(p, begin, rows, first, sums)
          : finish_panel<true, false>(p, begin, rows, first, sums);
  } else {
    p.add ? finish_panel<false, true>(p, begin, rows, first, sums)
          : finish_panel<false, false>(p, begin, rows, first, sums);
  }
}

/// Tiles of a panel are under way while the panel before is finished.
template <int Planes, int Steps>
void product(const CodeProduct& p) {
  const int64_t stride = static_cast<int64_t>(Planes) * p.words;
  const int panels = (p.out + kPanel - 1) / kPanel;
  alignas(64) float sums[2][2 * kSums];
  configure_tiles(kTile);
  for (int64_t begin = 0; begin < p.rows; begin += kTile) {
    const int rows = static_cast<int>(p.rows - begin < kTile ? p.rows - begin : kTile);
    const int32_t* x = p.x + begin * stride;
    each<Steps>([&]<int Step>() EQUIBIT_INLINE_LAMBDA {
      each<Planes>([&]<int Plane>() EQUIBIT_INLINE_LAMBDA {
        load_input<4 + Step * Planes + Plane>(x + Plane * p.words + Step * kTile, stride);
      });
    });
    for (int panel = 0; panel <= panels; ++panel) {
      if (panel < panels) {
        const int32_t* weight = p.weight + static_cast<int64_t>(panel) * p.words * kPanel;
        if (p.out - panel * kPanel > kTile) {
          sum_panel<Planes, Steps, true>(p, x, weight, sums[panel % 2]);
        } else {
          sum_panel<Planes, Steps, false>(p, x, weight, sums[panel % 2]);
        }
      }
      if (panel > 0) finish(p, begin, rows, (panel - 1) * kPanel, sums[(panel - 1) % 2]);
    }
  }
}

template <int Planes>
void product_of(const CodeProduct& p) {
  const int steps = p.words / kTile;
  if (steps == 1) return product<Planes, 1>(p);
  if constexpr (2 * Planes <= kHeld) {
    if (steps == 2) return product<Planes, 2>(p);
  }
  if constexpr (4 * Planes <= kHeld) {
    if (steps == 4) return product<Planes, 4>(p);
  }
  product<Planes, 0>(p);
}

void gemm(const CodeProduct& p) {
  switch (p.planes) {
    case 1:
      return product_of<1>(p);
    case 2:
      return product_of<2>(p);
    default:
      return product_of<3>(p);
  }
}

}  // namespace

const Bfloat16Kernels& bfloat16_tile_kernels() {
  static const Bfloat16Kernels table = {
      .most_planes = 3, .words_per_row = kTile, .split = bfloat16_kernels().split, .gemm = gemm};
  return table;
}

}  // namespace equibit
