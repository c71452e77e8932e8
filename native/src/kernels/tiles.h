// The tile registers of AMX, which all products of a thread share, and what these products share.
#pragma once

#include <immintrin.h>

#include <cstdint>

#define EQUIBIT_INLINE inline __attribute__((always_inline))
#define EQUIBIT_INLINE_LAMBDA __attribute__((always_inline))

namespace equibit {

/// Sets up eight tiles of 16 rows: 0–3 of 64 bytes, 4–7 of so many 32-bit words, as many as tile 3
/// then has rows. Does nothing where they are so already; `Kernels::release` gives them up.
void configure_tiles(int words);

constexpr int kPanel = 32;  // output channels of packed weights
constexpr int kTile = 16;
constexpr int kSums = kTile * kTile;
constexpr int kHeld = 4;  // tiles of inputs that stay loaded

namespace {  // compiled with the instructions of the file that includes it

/// Tiles are named by literals.
template <int Tile>
EQUIBIT_INLINE void load_input(const int32_t* x, int64_t stride) {
  static_assert(Tile >= 4 && Tile < 8);
  if constexpr (Tile == 4) _tile_loadd(4, x, stride * 4);
  if constexpr (Tile == 5) _tile_loadd(5, x, stride * 4);
  if constexpr (Tile == 6) _tile_loadd(6, x, stride * 4);
  if constexpr (Tile == 7) _tile_loadd(7, x, stride * 4);
}

/// f<0>(), …, f<N − 1>().
template <int N, typename F>
EQUIBIT_INLINE void each(const F& f) {
  if constexpr (N > 0) f.template operator()<0>();
  if constexpr (N > 1) f.template operator()<1>();
  if constexpr (N > 2) f.template operator()<2>();
  if constexpr (N > 3) f.template operator()<3>();
}

}  // namespace
}  // namespace equibit
