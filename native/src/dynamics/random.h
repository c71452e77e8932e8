// Random numbers that are a function of seed and place, so that a resumed run draws the same ones.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

namespace equibit {

/// Philox4x32-10: four 32-bit words from a key and a counter (Salmon et al., SC 2011).
inline void philox(uint64_t key, uint64_t counter_low, uint64_t counter_high, uint32_t words[4]) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  words[0] = static_cast<uint32_t>(counter_low);
  words[1] = static_cast<uint32_t>(counter_low >> 32);
  words[2] = static_cast<uint32_t>(counter_high);
  words[3] = static_cast<uint32_t>(counter_high >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * words[0], b = uint64_t{0xCD9E8D57u} * words[2];
    const uint32_t next[4] = {
        static_cast<uint32_t>(b >> 32) ^ words[1] ^ k0, static_cast<uint32_t>(b),
        static_cast<uint32_t>(a >> 32) ^ words[3] ^ k1, static_cast<uint32_t>(a)};
    for (int k = 0; k < 4; ++k) words[k] = next[k];
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

/// Three standard normal numbers for one atom at one step (Box–Muller).
inline void normals(uint64_t seed, uint64_t step, uint64_t atom, double values[3]) {
  uint32_t words[4];
  philox(seed, step, atom, words);
  double uniforms[4];
  for (int k = 0; k < 4; ++k) uniforms[k] = (words[k] + 0.5) * 0x1p-32;
  const double first = std::sqrt(-2.0 * std::log(uniforms[0]));
  const double second = std::sqrt(-2.0 * std::log(uniforms[2]));
  values[0] = first * std::cos(2.0 * std::numbers::pi * uniforms[1]);
  values[1] = first * std::sin(2.0 * std::numbers::pi * uniforms[1]);
  values[2] = second * std::cos(2.0 * std::numbers::pi * uniforms[3]);
}

}  // namespace equibit
