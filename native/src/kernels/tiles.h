// The tile registers of AMX, which all products of a thread share.
#pragma once

namespace equibit {

/// Sets up eight tiles of 16 rows: 0–3 of 64 bytes, 4–7 of so many 32-bit words, as many as tile 3
/// then has rows. Does nothing where they are so already; `Kernels::release` gives them up.
void configure_tiles(int words);

}  // namespace equibit
