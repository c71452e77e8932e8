#include "operations/geometry.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace equibit {
namespace {

constexpr double kGolden = 0.6180339887498949;
constexpr double kMixing = 0.25;
constexpr int kHops = 6;
constexpr double kTiny = 2.2250738585072014e-308;
constexpr int64_t kPairBlock = 1024;  // pairs that one thread takes at a time

double species_weight(int32_t species) {
  const double x = (species + 1) * kGolden;
  return 1.0 + (x - std::floor(x));
}

/// Eigenvalues, ascending, and eigenvectors (columns) of a symmetric matrix, by Jacobi rotations.
void eigen(const double matrix[9], double values[3], double axes[9]) {
  double a[3][3] = {{matrix[0], matrix[1], matrix[2]},
                    {matrix[1], matrix[4], matrix[5]},
                    {matrix[2], matrix[5], matrix[8]}};
  double v[3][3] = {{1, 0, 0}, {0, 1, 0}, {0, 0, 1}};
  for (int sweep = 0; sweep < 30; ++sweep) {
    const double off = a[0][1] * a[0][1] + a[0][2] * a[0][2] + a[1][2] * a[1][2];
    const double diagonal = a[0][0] * a[0][0] + a[1][1] * a[1][1] + a[2][2] * a[2][2];
    if (!(off > 1e-34 * diagonal)) break;
    for (int p = 0; p < 2; ++p) {
      for (int q = p + 1; q < 3; ++q) {
        if (a[p][q] == 0.0) continue;
        const double theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
        const double size = std::abs(theta);
        // Beyond 1e8 the root is the magnitude itself.
        const double root = size < 1e8 ? std::sqrt(size * size + 1.0) : size;
        const double t = (theta >= 0 ? 1.0 : -1.0) / (size + root);
        const double c = 1.0 / std::sqrt(t * t + 1.0), s = t * c;
        const double app = a[p][p], aqq = a[q][q], apq = a[p][q];
        a[p][p] = app - t * apq;
        a[q][q] = aqq + t * apq;
        a[p][q] = a[q][p] = 0.0;
        const int r = 3 - p - q;
        const double arp = a[r][p], arq = a[r][q];
        a[r][p] = a[p][r] = c * arp - s * arq;
        a[r][q] = a[q][r] = s * arp + c * arq;
        for (auto& row : v) {
          const double vp = row[p], vq = row[q];
          row[p] = c * vp - s * vq;
          row[q] = s * vp + c * vq;
        }
      }
    }
  }
  int order[3] = {0, 1, 2};
  std::stable_sort(order, order + 3, [&](int x, int y) { return a[x][x] < a[y][y]; });
  for (int k = 0; k < 3; ++k) {
    values[k] = a[order[k]][order[k]];
    for (int r = 0; r < 3; ++r) axes[3 * r + k] = v[r][order[k]];
  }
}

/// (1 − (d/r_c)²)³ e^{−d} and r̂ of a pair.
double smooth_weight(const double* vector, double cutoff, double unit[3]) {
  const double d = std::sqrt(vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2]);
  for (int k = 0; k < 3; ++k) unit[k] = vector[k] / d;
  const double x = std::max(0.0, 1.0 - (d / cutoff) * (d / cutoff));
  return x * x * x * std::exp(-d);
}

/// [n_pairs][4]: the weight without species, and r̂.
double* weighted_directions(const PairList& pairs, double cutoff, Workspace& workspace) {
  double* result = workspace.take<double>(4 * pairs.n_pairs);
  for (int64_t p = 0; p < pairs.n_pairs; ++p) {
    result[4 * p] = smooth_weight(pairs.vectors + 3 * p, cutoff, result + 4 * p + 1);
  }
  return result;
}

double* species_weights(int64_t n_atoms, const int32_t* species, Workspace& workspace) {
  double* result = workspace.take<double>(n_atoms);
  for (int64_t i = 0; i < n_atoms; ++i) result[i] = species_weight(species[i]);
  return result;
}

template <typename Visit>
void each_pair(const PairList& pairs, const Visit& visit) {
  for (int64_t i = 0; i < pairs.n_atoms; ++i) {
    for (int64_t p = pairs.first[i]; p < pairs.first[i + 1]; ++p) visit(p, i, pairs.second[p]);
  }
}

/// Of an atom's p, the upper triangle of its M, and a zero.
constexpr int kRow = 10;

void add_row(double factor, const double* __restrict__ x, double* __restrict__ y) {
  for (int k = 0; k < kRow; ++k) y[k] += factor * x[k];
}

}  // namespace

PairList open_pairs(int64_t n_atoms, const double* positions, double cutoff, Workspace& workspace) {
  PairList list;
  list.n_atoms = n_atoms;
  list.first = workspace.take<int64_t>(n_atoms + 1);
  const double limit = cutoff * cutoff;
  double closest = 1e60;
  // Counted first: for molecules all pairs are close, for large systems few are.
  int64_t count = 0;
  for (int64_t i = 0; i < n_atoms; ++i) {
    list.first[i] = count;
    const double* a = positions + 3 * i;
    for (int64_t j = i + 1; j < n_atoms; ++j) {
      const double* b = positions + 3 * j;
      const double x = b[0] - a[0], y = b[1] - a[1], z = b[2] - a[2];
      const double square = x * x + y * y + z * z;
      count += square < limit;
      closest = std::min(closest, square);
    }
    list.most = std::max(list.most, count - list.first[i]);
  }
  list.first[n_atoms] = count;
  list.n_pairs = count;
  list.closest = std::sqrt(closest);
  list.second = workspace.take<int32_t>(count);
  list.vectors = workspace.take<double>(3 * count);
  int64_t p = 0;
  for (int64_t i = 0; i < n_atoms; ++i) {
    const double* a = positions + 3 * i;
    for (int64_t j = i + 1; j < n_atoms; ++j) {
      const double* b = positions + 3 * j;
      const double x = b[0] - a[0], y = b[1] - a[1], z = b[2] - a[2];
      if (!(x * x + y * y + z * z < limit)) continue;
      list.second[p] = static_cast<int32_t>(j);
      list.vectors[3 * p] = x;
      list.vectors[3 * p + 1] = y;
      list.vectors[3 * p + 2] = z;
      ++p;
    }
  }
  return list;
}

void canonical_orientation(const PairList& pairs, const int32_t* species, double cutoff,
                           Workspace& workspace, double rotation[9]) {
  const int64_t n = pairs.n_atoms;
  const double* weights = weighted_directions(pairs, cutoff, workspace);
  const double* factors = species_weights(n, species, workspace);
  double* polar = workspace.zeros<double>(4 * n);  // n_i and p_i
  double tensor[9] = {};
  each_pair(pairs, [&](int64_t p, int64_t i, int64_t j) {
    const double* u = weights + 4 * p + 1;
    const double w = weights[4 * p], both = 2.0 * w * factors[i] * factors[j];
    for (int a = 0; a < 3; ++a) {
      for (int b = a; b < 3; ++b) tensor[3 * a + b] += both * u[a] * u[b];
      polar[4 * i + 1 + a] += w * factors[j] * u[a];
      polar[4 * j + 1 + a] -= w * factors[i] * u[a];
    }
    polar[4 * i] += w * factors[j];
    polar[4 * j] += w * factors[i];
  });
  double values[3], first[3] = {}, third[3] = {}, size = 0.0;
  eigen(tensor, values, rotation);
  for (int64_t i = 0; i < n; ++i) {
    const double* row = polar + 4 * i;
    double largest = 0.0;
    for (int k = 0; k < 3; ++k) {
      const double along =
          row[1] * rotation[k] + row[2] * rotation[3 + k] + row[3] * rotation[6 + k];
      first[k] += row[0] * factors[i] * along;
      third[k] += row[0] * along * along * along;
      largest = std::max(largest, std::abs(along));
    }
    size += row[0] * largest;
  }
  int weakest = 0;
  double sums[3];
  for (int k = 0; k < 3; ++k) {
    sums[k] = std::abs(first[k]) > 1e-6 * size ? first[k] : third[k];
    if (std::abs(sums[k]) < std::abs(sums[weakest])) weakest = k;
    if (sums[k] < 0) {
      for (int r = 0; r < 3; ++r) rotation[3 * r + k] = -rotation[3 * r + k];
    }
  }
  const double* q = rotation;
  const double determinant = q[0] * (q[4] * q[8] - q[5] * q[7]) -
                             q[1] * (q[3] * q[8] - q[5] * q[6]) +
                             q[2] * (q[3] * q[7] - q[4] * q[6]);
  if (determinant < 0) {
    for (int r = 0; r < 3; ++r) rotation[3 * r + weakest] = -rotation[3 * r + weakest];
  }
}

void turn_pairs(const PairList& pairs, const double q[9]) {
  for (int64_t p = 0; p < pairs.n_pairs; ++p) {
    double* r = pairs.vectors + 3 * p;
    const double x = r[0], y = r[1], z = r[2];
    for (int k = 0; k < 3; ++k) r[k] = x * q[k] + y * q[3 + k] + z * q[6 + k];
  }
}

double* local_frames(const PairList& pairs, const int32_t* species, double cutoff,
                     Workspace& workspace) {
  const int64_t n = pairs.n_atoms;
  const double* weights = weighted_directions(pairs, cutoff, workspace);
  const double* factors = species_weights(n, species, workspace);
  double* tensors = workspace.zeros<double>(kRow * n);
  double* next = workspace.take<double>(kRow * n);
  double* totals = workspace.zeros<double>(n);
  each_pair(pairs, [&](int64_t p, int64_t i, int64_t j) {
    const double* u = weights + 4 * p + 1;
    const double to_i = weights[4 * p] * factors[j], to_j = weights[4 * p] * factors[i];
    totals[i] += to_i;
    totals[j] += to_j;
    double* ti = tensors + kRow * i;
    double* tj = tensors + kRow * j;
    int k = 3;
    for (int a = 0; a < 3; ++a) {
      ti[a] += to_i * u[a];
      tj[a] -= to_j * u[a];
      for (int b = a; b < 3; ++b, ++k) {
        const double product = u[a] * u[b];
        ti[k] += to_i * product;
        tj[k] += to_j * product;
      }
    }
  });
  for (int64_t i = 0; i < n; ++i) totals[i] = kMixing / std::max(totals[i], kTiny);
  for (int hop = 0; hop < kHops; ++hop) {
    std::copy(tensors, tensors + kRow * n, next);
    each_pair(pairs, [&](int64_t p, int64_t i, int64_t j) {
      const double w = weights[4 * p];
      const double to_i = w * factors[j] * totals[i], to_j = w * factors[i] * totals[j];
      add_row(to_i, tensors + kRow * j, next + kRow * i);
      add_row(to_j, tensors + kRow * i, next + kRow * j);
    });
    std::swap(tensors, next);
  }
  double* frames = workspace.take<double>(9 * n);
  for (int64_t i = 0; i < n; ++i) {
    const double* t = tensors + kRow * i;
    const double length = std::max(std::sqrt(t[0] * t[0] + t[1] * t[1] + t[2] * t[2]), kTiny);
    double moment[9];
    int k = 3;
    for (int a = 0; a < 3; ++a) {
      for (int b = a; b < 3; ++b, ++k) {
        moment[3 * a + b] = moment[3 * b + a] = t[k] + t[a] * (t[b] / length);
      }
    }
    double values[3], axes[9];
    eigen(moment, values, axes);
    const int z = values[1] - values[0] > values[2] - values[1] ? 0 : 2;
    double* frame = frames + 9 * i;
    for (int r = 0; r < 3; ++r) {
      const int s = (r + 1) % 3, t2 = (r + 2) % 3;
      frame[3 * r] = axes[3 * r + 1];
      frame[3 * r + 1] = axes[3 * s + z] * axes[3 * t2 + 1] - axes[3 * t2 + z] * axes[3 * s + 1];
      frame[3 * r + 2] = axes[3 * r + z];
    }
  }
  return frames;
}

namespace {

/// D_ℓ = Cᵀ (D_1 ⊗ D_{ℓ−1}) C. Shape: coupling [3][2ℓ−1][2ℓ+1].
template <int L>
void next_wigner(const double* first, const double* before, const double* coupling,
                 double* current) {
  constexpr int n = 2 * L + 1, m = 2 * L - 1;
  double half[m][3][n] = {};  // D_{ℓ−1} C
  for (int b = 0; b < m; ++b) {
    for (int x = 0; x < 3; ++x) {
      for (int y = 0; y < m; ++y) {
        const double* row = coupling + (x * m + y) * n;
        for (int k = 0; k < n; ++k) half[b][x][k] += before[m * b + y] * row[k];
      }
    }
  }
  std::fill(current, current + n * n, 0.0);
  for (int a = 0; a < 3; ++a) {
    for (int b = 0; b < m; ++b) {
      double turned[n] = {};
      for (int x = 0; x < 3; ++x) {
        for (int k = 0; k < n; ++k) turned[k] += first[3 * a + x] * half[b][x][k];
      }
      for (int k = 0; k < n; ++k) {
        const double factor = coupling[(a * m + b) * n + k];
        if (factor == 0.0) continue;
        for (int o = 0; o < n; ++o) current[n * k + o] += factor * turned[o];
      }
    }
  }
}

}  // namespace

void wigner_matrices(int64_t n_atoms, const double* frames, int max_degree,
                     const double* const* couplings, Workspace& workspace, float** matrices) {
  constexpr int kOrder[3] = {1, 2, 0};
  for (int l = 1; l <= max_degree; ++l) {
    matrices[l] = workspace.take<float>(n_atoms * (2 * l + 1) * (2 * l + 1));
  }
  const auto keep = [&](int64_t atom, int l, const double* matrix) {
    const int size = (2 * l + 1) * (2 * l + 1);
    for (int k = 0; k < size; ++k) matrices[l][atom * size + k] = static_cast<float>(matrix[k]);
  };
  for (int64_t i = 0; i < n_atoms; ++i) {
    double first[9], second[25], third[49];
    for (int a = 0; a < 3; ++a) {
      for (int b = 0; b < 3; ++b) first[3 * a + b] = frames[9 * i + 3 * kOrder[a] + kOrder[b]];
    }
    keep(i, 1, first);
    if (max_degree < 2) continue;
    next_wigner<2>(first, first, couplings[2], second);
    keep(i, 2, second);
    if (max_degree < 3) continue;
    next_wigner<3>(first, second, couplings[3], third);
    keep(i, 3, third);
  }
}

namespace {

const double kSqrt3 = std::sqrt(3.0);
const double kSqrt15 = std::sqrt(15.0);
const double kSqrt38 = std::sqrt(3.0 / 8.0);
const double kSqrt58 = std::sqrt(5.0 / 8.0);

/// Ŷ_ℓ = √(4π/(2ℓ+1)) Y_ℓ of a unit vector.
void harmonics(int degree, const double* u, float* out) {
  const double x = u[0], y = u[1], z = u[2];
  const auto put = [&](int m, double value) { out[m] = static_cast<float>(value); };
  if (degree == 1) {
    put(0, y);
    put(1, z);
    put(2, x);
  } else if (degree == 2) {
    put(0, kSqrt3 * x * y);
    put(1, kSqrt3 * y * z);
    put(2, 0.5 * (3 * z * z - 1));
    put(3, kSqrt3 * x * z);
    put(4, 0.5 * kSqrt3 * (x * x - y * y));
  } else {
    put(0, kSqrt58 * y * (3 * x * x - y * y));
    put(1, kSqrt15 * x * y * z);
    put(2, kSqrt38 * y * (5 * z * z - 1));
    put(3, 0.5 * z * (5 * z * z - 3));
    put(4, kSqrt38 * x * (5 * z * z - 1));
    put(5, 0.5 * kSqrt15 * z * (x * x - y * y));
    put(6, kSqrt58 * x * (x * x - 3 * y * y));
  }
}

/// g += Σ_m d_m ∂Ŷ_m/∂u, the polynomials taken as they stand.
void harmonics_backward(int degree, const double* u, const float* d, double g[3]) {
  const double x = u[0], y = u[1], z = u[2];
  if (degree == 1) {
    g[0] += d[2];
    g[1] += d[0];
    g[2] += d[1];
  } else if (degree == 2) {
    g[0] += kSqrt3 * (d[0] * y + d[3] * z + d[4] * x);
    g[1] += kSqrt3 * (d[0] * x + d[1] * z - d[4] * y);
    g[2] += kSqrt3 * (d[1] * y + d[3] * x) + 3 * d[2] * z;
  } else {
    const double zz = 5 * z * z - 1;
    g[0] += kSqrt58 * (6 * d[0] * x * y + 3 * d[6] * (x * x - y * y)) + kSqrt15 * d[1] * y * z +
            kSqrt38 * d[4] * zz + kSqrt15 * d[5] * z * x;
    g[1] += kSqrt58 * (3 * d[0] * (x * x - y * y) - 6 * d[6] * x * y) + kSqrt15 * d[1] * x * z +
            kSqrt38 * d[2] * zz - kSqrt15 * d[5] * z * y;
    g[2] += kSqrt15 * d[1] * x * y + kSqrt38 * 10 * z * (d[2] * y + d[4] * x) +
            0.5 * d[3] * (15 * z * z - 3) + 0.5 * kSqrt15 * d[5] * (x * x - y * y);
  }
}

}  // namespace

double RadialGrid::spacing() const {
  return (kind == Kind::kCosine ? -std::expm1(-cutoff) : cutoff) / (splines - 3);
}

EdgeGeometry edge_geometry(const PairList& list, const RadialGrid& grid, int max_degree,
                           Workspace& workspace, Crew& crew) {
  const bool cosine = grid.kind == RadialGrid::Kind::kCosine;
  const double cutoff = grid.cutoff;
  const int64_t n = list.n_pairs, n_atoms = list.n_atoms;
  int32_t* tap = workspace.take<int32_t>(n);
  float* taps = workspace.take<float>(4 * n);
  float* slopes = workspace.take<float>(4 * n);
  float* envelope = workspace.take<float>(2 * n);
  EdgeGeometry result{};
  result.distances = workspace.take<double>(n);
  result.units = workspace.take<double>(3 * n);

  // Rows of edges: pairs in order, appended to the rows of both atoms, leave every row sorted.
  int64_t* first = workspace.zeros<int64_t>(n_atoms + 1);
  int64_t* next = workspace.take<int64_t>(n_atoms);
  int32_t* sender = workspace.take<int32_t>(2 * n);
  int32_t* pair = workspace.take<int32_t>(2 * n);
  int32_t* reverse = workspace.take<int32_t>(2 * n);
  int64_t* edge_of_pair = workspace.take<int64_t>(n);
  each_pair(list, [&](int64_t, int64_t i, int64_t j) {
    ++first[i + 1];
    ++first[j + 1];
  });
  int64_t most = 0;
  for (int64_t i = 0; i < n_atoms; ++i) {
    most = std::max(most, first[i + 1]);
    first[i + 1] += first[i];
    next[i] = first[i];
  }
  each_pair(list, [&](int64_t p, int64_t i, int64_t j) {
    const int64_t there = next[i]++, back = next[j]++;
    edge_of_pair[p] = there;
    sender[there] = static_cast<int32_t>(j);
    sender[back] = static_cast<int32_t>(i);
    pair[there] = pair[back] = static_cast<int32_t>(p);
    reverse[there] = static_cast<int32_t>(back);
    reverse[back] = static_cast<int32_t>(there);
  });

  float* y[kMaxDegree + 1] = {};
  for (int l = 1; l <= max_degree; ++l) y[l] = workspace.take<float>(2 * n * (2 * l + 1));
  const double per_length = 1.0 / grid.spacing();
  crew.each((n + kPairBlock - 1) / kPairBlock, [&](int64_t block, Workspace&) {
    for (int64_t p = block * kPairBlock; p < std::min(n, (block + 1) * kPairBlock); ++p) {
      const double* r = list.vectors + 3 * p;
      const double d = std::sqrt(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]);
      double* u = result.units + 3 * p;
      for (int k = 0; k < 3; ++k) u[k] = r[k] / d;
      result.distances[p] = d;

      const double scaled = (cosine ? -std::expm1(-d) : d) * per_length;
      const double stretch = per_length * (cosine ? std::exp(-d) : 1.0);
      const int at = std::clamp(static_cast<int>(scaled), 0, grid.splines - 4);
      const double t = scaled - at, s = 1.0 - t;
      tap[p] = at;
      const double values[4] = {s * s * s / 6, (3 * t * t * t - 6 * t * t + 4) / 6,
                                (3 * s * s * s - 6 * s * s + 4) / 6, t * t * t / 6};
      const double derivatives[4] = {-s * s / 2, (3 * t * t - 4 * t) / 2, (4 * s - 3 * s * s) / 2,
                                     t * t / 2};
      for (int k = 0; k < 4; ++k) {
        taps[4 * p + k] = static_cast<float>(values[k]);
        slopes[4 * p + k] = static_cast<float>(derivatives[k] * stretch);
      }

      const double x = std::min(d / cutoff, 1.0), x2 = x * x, x5 = x2 * x2 * x;
      if (cosine) {
        const double angle = std::numbers::pi * x;
        envelope[2 * p] = static_cast<float>(0.5 * (std::cos(angle) + 1.0));
        envelope[2 * p + 1] =
            static_cast<float>(-0.5 * std::numbers::pi / cutoff * std::sin(angle));
      } else {
        envelope[2 * p] = static_cast<float>(1.0 - x5 * x * (28.0 - x * (48.0 - x * 21.0)));
        envelope[2 * p + 1] = static_cast<float>(-168.0 * x5 * (1.0 - x) * (1.0 - x) / cutoff);
      }
      const int64_t there = edge_of_pair[p], back = reverse[there];
      for (int l = 1; l <= max_degree; ++l) {
        float* forth = y[l] + there * (2 * l + 1);
        harmonics(l, u, forth);
        const float sign = l % 2 == 0 ? 1.0f : -1.0f;
        for (int m = 0; m < 2 * l + 1; ++m) y[l][back * (2 * l + 1) + m] = sign * forth[m];
      }
    }
  });
  result.edge_of_pair = edge_of_pair;
  result.edges = {.n_atoms = n_atoms,
                  .n_pairs = n,
                  .most = most,
                  .first = first,
                  .sender = sender,
                  .pair = pair,
                  .reverse = reverse,
                  .tap = tap,
                  .taps = taps,
                  .slopes = slopes,
                  .envelope = envelope,
                  .harmonics = {}};
  for (int l = 1; l <= max_degree; ++l) result.edges.harmonics[l] = y[l];
  return result;
}

void vector_gradients(const EdgeGeometry& geometry, int max_degree, const float* edge_gradient,
                      double* gradients, Crew& crew) {
  const int64_t n = geometry.edges.n_pairs;
  const int64_t width = edge_gradients(max_degree);
  crew.each((n + kPairBlock - 1) / kPairBlock, [&](int64_t block, Workspace&) {
    for (int64_t p = block * kPairBlock; p < std::min(n, (block + 1) * kPairBlock); ++p) {
      const double* u = geometry.units + 3 * p;
      const int64_t there = geometry.edge_of_pair[p], back = geometry.edges.reverse[there];
      const float* forth = edge_gradient + there * width;
      const float* other = edge_gradient + back * width;
      double g[3] = {};
      for (int l = 1; l <= max_degree; ++l) {
        float both[2 * kMaxDegree + 1];
        const float sign = l % 2 == 0 ? 1.0f : -1.0f;
        for (int m = 0; m < 2 * l + 1; ++m) {
          const int at = edge_gradients(l - 1) + m;
          both[m] = forth[at] + sign * other[at];
        }
        harmonics_backward(l, u, both, g);
      }
      const double radial = g[0] * u[0] + g[1] * u[1] + g[2] * u[2];
      const double along = static_cast<double>(forth[0]) + other[0];
      for (int k = 0; k < 3; ++k) {
        gradients[3 * p + k] = along * u[k] + (g[k] - radial * u[k]) / geometry.distances[p];
      }
    }
  });
}

}  // namespace equibit
