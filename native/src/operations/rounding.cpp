#include "operations/rounding.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace equibit {
namespace {

constexpr float kSmallest = 1e-6f;       // an atom's largest vector below this counts as noise
constexpr double kZeroTolerance = 1e-5;  // of the largest magnitude: a component that counts as 0

using Point = std::array<double, 3>;

/// Ties to even, for |x| < 2²², which every clipped code is.
float nearest(float x) {
  constexpr float kShifter = 12582912.0f;
  return (x + kShifter) - kShifter;
}

/// Any number at all where x is not one: the residual stream, which is not rounded, carries NaN on.
float clipped(float x, float highest) {
  return x > -highest ? (x < highest ? x : highest) : -highest;
}

const float* center_of(const CodeRows& p, int64_t row) {
  return p.centers != nullptr ? p.centers + static_cast<int64_t>(p.species[row]) * p.n : nullptr;
}

template <typename Store>
void round_rows(const CodeRows& p, uint8_t* clips, int64_t clip_ld, const Store& store) {
  const auto highest = static_cast<float>(p.highest);
  for (int64_t r = 0; r < p.rows; ++r) {
    const float* in = p.x + r * p.ldx;
    const float* center = center_of(p, r);
    const float step = p.scales[r];
    for (int c = 0; c < p.n; ++c) {
      const float ratio = (center != nullptr ? in[c] - center[c] : in[c]) / step;
      const float inside = clipped(ratio, highest);
      if (clips != nullptr) clips[r * clip_ld + c] = ratio == inside ? 0 : 1;
      store(r, c, static_cast<int32_t>(nearest(inside)));
    }
  }
}

void unit(Point& p) {
  const double size = std::sqrt(p[0] * p[0] + p[1] * p[1] + p[2] * p[2]);
  for (double& x : p) x = std::abs(x) < 1e-12 * size ? 0.0 : x / size;
}

Point rolled(const Point& p, int places) {
  return {p[(3 - places) % 3], p[(4 - places) % 3], p[(5 - places) % 3]};
}

/// The positive octant of the geodesic icosahedron of frequency f and the three axes.
std::vector<Point> icosphere_octant(int f) {
  const double golden = (1.0 + std::sqrt(5.0)) / 2.0;
  std::vector<Point> vertices, octant;
  for (int a : {-1, 1}) {
    for (int b : {-1, 1}) {
      for (int shift = 0; shift < 3; ++shift) {
        vertices.push_back(rolled({0.0, static_cast<double>(a), b * golden}, shift));
      }
    }
  }
  const auto bonded = [&](size_t i, size_t j) {
    double square = 0.0;
    for (size_t x = 0; x < 3; ++x) square += std::pow(vertices[i][x] - vertices[j][x], 2);
    return std::abs(square - 4.0) < 1e-6;
  };
  for (size_t i = 0; i < 12; ++i) {
    for (size_t j = i + 1; j < 12; ++j) {
      for (size_t k = j + 1; k < 12; ++k) {
        if (!bonded(i, j) || !bonded(i, k) || !bonded(j, k)) continue;
        for (int a = 0; a <= f; ++a) {
          for (int b = 0; b <= f - a; ++b) {
            Point p;
            for (size_t x = 0; x < 3; ++x) {
              p[x] = a * vertices[i][x] + b * vertices[j][x] + (f - a - b) * vertices[k][x];
            }
            unit(p);
            if (p[0] >= 0.0 && p[1] >= 0.0 && p[2] >= 0.0) octant.push_back(p);
          }
        }
      }
    }
  }
  for (int axis = 0; axis < 3; ++axis) octant.push_back(rolled({1.0, 0.0, 0.0}, axis));
  // Edges and corners of faces were met more than once, to within float64 round-off.
  const auto key = [](const Point& p) {
    return std::array<int64_t, 3>{std::llround(1e9 * p[0]), std::llround(1e9 * p[1]),
                                  std::llround(1e9 * p[2])};
  };
  std::sort(octant.begin(), octant.end(),
            [&](const Point& a, const Point& b) { return key(a) < key(b); });
  octant.erase(std::unique(octant.begin(), octant.end(),
                           [&](const Point& a, const Point& b) { return key(a) == key(b); }),
               octant.end());
  return octant;
}

/// The positive octant of `even_254`.
std::vector<Point> even_octant() {
  constexpr double kInterior[8][3] = {
      {0.839117, 0.462071, 0.287006}, {0.326729, 0.169712, 0.929756},
      {0.618233, 0.129110, 0.775318}, {0.239760, 0.964958, 0.106636},
      {0.408636, 0.880361, 0.240793}, {0.499926, 0.754587, 0.425056},
      {0.625127, 0.365260, 0.689784}, {0.774324, 0.207291, 0.597873}};
  constexpr double kInPlane[4] = {62.543672, 27.541279, 49.725689, 11.589447};  // degrees
  std::vector<Point> points = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}, {1, 1, 1}};
  for (int k = 0; k < 3; ++k) {
    for (const auto& p : kInterior) points.push_back(rolled({p[0], p[1], p[2]}, k));
    for (const double degrees : kInPlane) {
      const double angle = degrees * std::acos(-1.0) / 180.0;
      points.push_back(rolled({0.0, std::cos(angle), std::sin(angle)}, k));
    }
  }
  for (Point& p : points) unit(p);
  return points;
}

constexpr int kMostComponents = 2 * kMaxDegree + 1;

/// One vector, v̂ = Δ code · d, and what its codes are made of.
struct Rounded {
  float unit[kMostComponents];       // u = v/r
  float direction[kMostComponents];  // d: the codeword, or w/‖w‖ of the rounded components of u
  float inverse;                     // 1/r
  float size;                        // Δ · code
  float turning;                     // d in float per u where components are rounded: steps/‖w‖
  bool beyond;                       // of the largest magnitude code

  Rounded(const VectorRounding& how, const float* v, int components, int channels, float step) {
    float square = (0.25f * step) * (0.25f * step);
    for (int m = 0; m < components; ++m) square += v[m * channels] * v[m * channels];
    const float r = std::sqrt(square), ratio = r / step;
    const auto highest = static_cast<float>(how.magnitude);
    inverse = 1.0f / r;
    // The softening lifts the largest of a step that an atom found a little above its code.
    beyond = how.step > 0.0f && ratio > highest;
    size = step * nearest(ratio < highest ? ratio : highest);
    for (int m = 0; m < components; ++m) unit[m] = v[m * channels] * inverse;
    if (components == 3 && !how.codewords.empty()) {
      find_codeword(how, v, channels, step);
    } else {
      round_components(how, components);
    }
  }

 private:
  void round_components(const VectorRounding& how, int components) {
    float length = 0.0f, most = 1.0f;
    if (how.codec == VectorRounding::Codec::kCube) {
      most = kSmallestSide;
      for (int m = 0; m < components; ++m) most = std::max(most, std::abs(unit[m]));
    }
    const float scale = static_cast<float>(how.direction) / most;
    for (int m = 0; m < components; ++m) {
      direction[m] = nearest(unit[m] * scale);
      length += direction[m] * direction[m];
    }
    // Components are integers, so a length below 1 is 0.
    const float normalise = 1.0f / std::sqrt(std::max(length, 1.0f));
    for (int m = 0; m < components; ++m) direction[m] *= normalise;
    turning = scale * normalise;
  }

  void find_codeword(const VectorRounding& how, const float* v, int channels, float step) {
    const auto zero = static_cast<float>(kZeroTolerance * how.magnitude) * step;
    float folded[3];
    for (int m = 0; m < 3; ++m) {
      const float x = std::abs(v[m * channels]);
      folded[m] = x <= zero ? 0.0f : x;
    }
    const float* best = how.codewords.data();
    float most = -1.0f;
    for (size_t k = 0; k < how.codewords.size(); k += 3) {
      const float* q = how.codewords.data() + k;
      // What is 0 stays 0, so that mirror images keep their symmetry.
      bool fits = true;
      float along = 0.0f;
      for (int m = 0; m < 3; ++m) {
        fits &= folded[m] != 0.0f || q[m] == 0.0f;
        along += folded[m] * q[m];
      }
      if (fits && along > most) {
        most = along;
        best = q;
      }
    }
    for (int m = 0; m < 3; ++m) direction[m] = std::copysign(best[m], v[m * channels]);
    turning = 0.0f;
  }
};

/// Δ of an atom's vectors.
float step_of(const VectorRounding& how, int components, int channels, const float* v) {
  if (how.step > 0.0f) return how.step;
  float most = 0.0f;
  for (int c = 0; c < channels; ++c) {
    float square = 0.0f;
    for (int m = 0; m < components; ++m) {
      const float x = v[m * channels + c];
      if (how.codec == VectorRounding::Codec::kComponents) {
        most = std::max(most, std::abs(x));
      } else {
        square += x * x;
      }
    }
    most = std::max(most, std::sqrt(square));
  }
  return std::max(most, kSmallest) / static_cast<float>(how.magnitude);
}

bool on_cube(const VectorRounding& how) { return how.codec == VectorRounding::Codec::kCube; }

/// The kernels know steps that atoms find, and directions rounded by components.
bool in_kernels(const VectorRounding& how, int components) {
  const bool codebook = how.codec == VectorRounding::Codec::kCodebook && components == 3;
  return how.step == 0.0f && !codebook;
}

}  // namespace

void round_to_steps(const CodeRows& p, CodeLayout layout, int planes, uint8_t* clips,
                    int64_t clip_ld) {
  const int64_t words = p.rows * p.words;
  if (layout == CodeLayout::kPairs) {
    auto* out = reinterpret_cast<int16_t*>(p.codes);
    std::fill(out, out + 2 * words, int16_t{0});
    round_rows(p, clips, clip_ld, [&](int64_t r, int c, int32_t code) {
      out[2 * r * p.words + c] = static_cast<int16_t>(code);
    });
    return;
  }
  auto* out = reinterpret_cast<uint8_t*>(p.codes);
  if (layout == CodeLayout::kBytes) {
    std::fill(out, out + 4 * words, uint8_t{128});
    round_rows(p, clips, clip_ld, [&](int64_t r, int c, int32_t code) {
      out[4 * r * p.words + c] = static_cast<uint8_t>(code + 128);
    });
    return;
  }
  std::fill(out, out + 4 * words * planes, uint8_t{0});
  round_rows(p, clips, clip_ld, [&](int64_t r, int c, int32_t code) {
    for (int plane = 0; plane < planes; ++plane) {
      out[4 * (r * planes + plane) * p.words + c] =
          static_cast<uint8_t>(code >> 8 * (planes - 1 - plane));
    }
  });
}

void row_steps(const CodeRows& p) {
  for (int64_t r = 0; r < p.rows; ++r) {
    const float* in = p.x + r * p.ldx;
    const float* center = center_of(p, r);
    float most = 1e-30f;
    for (int c = 0; c < p.n; ++c) {
      most = std::max(most, std::abs(center != nullptr ? in[c] - center[c] : in[c]));
    }
    p.scales[r] = most / static_cast<float>(p.highest);
  }
}

void round_to_values(const CodeRows& p, uint8_t* clips, int64_t clip_ld, float* values) {
  round_rows(p, clips, clip_ld, [&](int64_t r, int c, int32_t code) {
    const float* center = center_of(p, r);
    values[r * p.n + c] =
        p.scales[r] * static_cast<float>(code) + (center != nullptr ? center[c] : 0.0f);
  });
}

void drop_clipped(int64_t rows, int n, const uint8_t* clips, int64_t clip_ld, float* dx,
                  int64_t ldx) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int c = 0; c < n; ++c) {
      if (clips[r * clip_ld + c] != 0) dx[r * ldx + c] = 0.0f;
    }
  }
}

void round_heads(int64_t rows, int heads, int width, const float* z, float step, int highest,
                 const float* factor, float* scaled) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int h = 0; h < heads; ++h) {
      const float size = step * factor[h];
      for (int c = 0; c < width; ++c) {
        const int64_t at = (r * heads + h) * width + c;
        scaled[at] = size * nearest(clipped(z[at] / step, static_cast<float>(highest)));
      }
    }
  }
}

void drop_beyond(int64_t rows, int n, const float* z, float step, int highest, float* dz,
                 int64_t ld) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int c = 0; c < n; ++c) {
      if (std::abs(z[r * n + c] / step) > static_cast<float>(highest)) dz[r * ld + c] = 0.0f;
    }
  }
}

std::vector<float> octant_codewords(int bits) {
  std::vector<Point> points;
  if (bits == 8) {
    points = even_octant();
  } else {
    const int64_t most = int64_t{1} << bits;
    int f = static_cast<int>(std::sqrt((static_cast<double>(most) - 2.0) / 10.0));
    // The axes are vertices of even frequencies only.
    while (10 * f * f + (f % 2 == 0 ? 2 : 8) > most) --f;
    points = icosphere_octant(f);
  }
  std::vector<float> result;
  for (const Point& p : points) {
    for (const double x : p) result.push_back(static_cast<float>(x));
  }
  return result;
}

void round_vectors(const Kernels& kernels, const VectorRounding& how, int64_t atoms, int components,
                   int channels, const float* v, float* rounded) {
  if (in_kernels(how, components)) {
    kernels.round_vectors(atoms, components, channels, v, how.magnitude, how.direction,
                          on_cube(how), rounded);
    return;
  }
  for (int64_t i = 0; i < atoms; ++i) {
    const int64_t at = i * components * channels;
    const float step = step_of(how, components, channels, v + at);
    for (int c = 0; c < channels; ++c) {
      const Rounded vector(how, v + at + c, components, channels, step);
      for (int m = 0; m < components; ++m) {
        rounded[at + m * channels + c] = vector.size * vector.direction[m];
      }
    }
  }
}

void round_vectors_backward(const Kernels& kernels, const VectorRounding& how, int64_t atoms,
                            int components, int channels, const float* v, float* gradient) {
  if (in_kernels(how, components)) {
    kernels.round_vectors_backward(atoms, components, channels, v, how.magnitude, how.direction,
                                   on_cube(how), gradient);
    return;
  }
  for (int64_t i = 0; i < atoms; ++i) {
    const int64_t at = i * components * channels;
    const float step = step_of(how, components, channels, v + at);
    for (int c = 0; c < channels; ++c) {
      const Rounded vector(how, v + at + c, components, channels, step);
      float* g = gradient + at + c;
      const float *u = vector.unit, *d = vector.direction;
      float radial = 0.0f, along = 0.0f, square = 1e-30f, turned = 0.0f;
      for (int m = 0; m < components; ++m) {
        radial += d[m] * g[m * channels];
        along += u[m] * g[m * channels];
        square += u[m] * u[m];
      }
      // ∂E/∂u: on the sphere what is across u, else through w/‖w‖.
      const bool codeword = vector.turning == 0.0f;
      const float factor = codeword ? vector.size : vector.size * vector.turning;
      const float part = codeword ? along / square : radial;
      const float* axis = codeword ? u : d;
      for (int m = 0; m < components; ++m) {
        g[m * channels] = factor * (g[m * channels] - part * axis[m]);
        turned += u[m] * g[m * channels];
      }
      const float kept = (vector.beyond ? 0.0f : radial) - turned * vector.inverse;
      for (int m = 0; m < components; ++m) {
        g[m * channels] = g[m * channels] * vector.inverse + kept * u[m];
      }
    }
  }
}

void component_steps(const VectorRounding& how, int64_t atoms, int components, int channels,
                     const float* v, float* steps) {
  for (int64_t i = 0; i < atoms; ++i) {
    const int64_t row = i * components;
    std::fill_n(steps + row, components, step_of(how, components, channels, v + row * channels));
  }
}

}  // namespace equibit
