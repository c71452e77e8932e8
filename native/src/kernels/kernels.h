// The arithmetic of the networks as a table of functions, one table per instruction set.
//
// Rows are channel-last: [atom][channel] or [atom][component][channel]. A leading dimension `ld` is
// the distance between rows in floats. Kernels never allocate.
#pragma once

#include <cstdint>

namespace equibit {

inline constexpr int kMaxDegree = 3;
inline constexpr int kMaxHeads = 32;

/// Directed edges i ← j, sorted by receiver i, both directions of every pair of atoms.
struct Edges {
  int64_t n_atoms;
  int64_t n_pairs;
  int64_t most;            // edges of one atom
  const int64_t* first;    // [n_atoms + 1] edges of atom i are first[i] … first[i+1]
  const int32_t* sender;   // [n_edges] j
  const int32_t* pair;     // [n_edges]
  const int32_t* reverse;  // [n_edges] the edge j ← i of the same pair
  const int32_t* tap;      // [n_pairs] first of the four splines that overlap d
  const float* taps;       // [n_pairs][4] their values
  const float* slopes;     // [n_pairs][4] their derivatives with respect to d
  const float* envelope;   // [n_pairs][2] f_c(d) and its derivative
  const float* harmonics[kMaxDegree + 1];  // [n_edges][2ℓ+1] Ŷ_ℓ(r̂_ij), ℓ ≥ 1
};

/// ∂E/∂d and ∂E/∂Ŷ_1 … ∂E/∂Ŷ_L of an edge.
constexpr int edge_gradients(int max_degree) { return max_degree * (max_degree + 2) + 1; }

/// One attention layer: A_i = Σ_j p_ij m_ij.
struct Attention {
  int heads;
  int scalars;     // F
  int channels;    // C of each degree ℓ ≥ 1
  int max_degree;  // L
  bool first;      // no vectors to send yet
  bool softmax;
  bool axial;  // parts of vectors along the bond reach every degree
  // [n_splines][stride] columns F, C·L (0→ℓ), for each ℓ C (→0), C (ℓ→ℓ) and if axial C·L (→1 … L),
  // and heads
  const float* table;
  int64_t stride;
  const float* filters;  // [n_pairs][stride] of all pairs, or null
  const float* slopes;   // their derivatives with respect to d, for the reverse pass
  // For a reverse pass in 16-bit floats: the table and the differences of its rows that follow each
  // other, [n_splines][half_stride] each, and of all pairs as above.
  const uint16_t* half_table;
  const uint16_t* half_differences;
  int64_t half_stride;
  const uint16_t* half_filters;
  const uint16_t* half_slopes;
  const float* query;  // [n_atoms][F] times temperature
  const float* key;    // [n_atoms][F]
  const float* value;  // [n_atoms][F + L·C]
  int64_t value_ld;
  const float* vectors[kMaxDegree + 1];  // [n_atoms][2ℓ+1][C]

  float* raw;         // [n_edges][heads] p_ij/f_c(d_ij)
  float* invariants;  // [n_atoms][F + L·C], only F in the first layer
  int64_t invariant_ld;
  float* messages[kMaxDegree + 1];     // [n_atoms][2ℓ+1][C] A^ℓ, or null
  float* vectors_out[kMaxDegree + 1];  // vectors + A^ℓ
};

/// Gradients of one attention layer.
struct AttentionGradient {
  const float* invariants;                // [n_atoms][·] ∂E/∂A⁰
  const float* messages[kMaxDegree + 1];  // [n_atoms][2ℓ+1][C] ∂E/∂A^ℓ, which is that of the sum
  float* sums;                            // [n_atoms][heads] Σ A ∂E/∂A, for softmax
  float* query;                           // [n_atoms] rows of leading dimension qkv_ld, set
  float* key;
  float* value;
  int64_t qkv_ld;
  float* vectors[kMaxDegree + 1];  // set
  float* d_z;                      // [n_edges][heads]
  float* geometry;                 // [n_edges][edge_gradients(L)], added to
  // `invariants` and `messages` of an atom in one row of 16-bit floats, times a power of two.
  uint16_t* halves;    // [n_atoms][half_row]
  float* half_scales;  // [n_atoms] that power
};

/// Numbers in a row of `AttentionGradient::halves`: F + L·C, then (2ℓ+1)·C of each degree.
constexpr int64_t half_row(const Attention& a) {
  return a.scalars + a.max_degree * (a.max_degree + 3) * static_cast<int64_t>(a.channels);
}

/// Products within heads of what both atoms of an edge carry and a filter of their pair.
struct PairProducts {
  int heads;
  int features;          // of all heads
  const float* filters;  // [n_pairs] rows, or null for 1
  int64_t filter_ld;
};

/// Floats of scratch that the edge pass and its reverse need.
constexpr int64_t edge_scratch(const Edges& edges, const Attention& a) {
  return edges.most * (a.stride + a.heads) + 2 * a.stride + half_row(a) + a.half_stride +
         a.scalars + a.channels + 16 * kMaxHeads + 64;
}

/// A sparse coupling tensor and its weights: P^ℓ3 += w_c C_mnk U^ℓ1_m T^ℓ2_n.
struct Coupling {
  int l1, l2, l3;
  int n_terms;
  const int32_t* terms;  // [n_terms][3] m, n, k, those of one k in a row
  const float* values;   // [n_terms]
  const float* weight;   // [channels]
};

/// Rows to be rounded: (x − μ_Z) · f with one step per row, max|…|/highest.
struct CodeRows {
  int64_t rows;
  int n;
  const float* x;
  int64_t ldx;
  const float* centers;    // [species][n] μ, or null
  const int32_t* species;  // [rows], used with centers
  const float* factors;    // [n] f, or null
  int highest;
  int32_t* codes;  // [rows][words], zeros beyond n
  int words;
  float* scales;  // [rows] steps
};

/// Y = scale_r (Σ_g step_og Σ_k w_ok q_rk) + b, or Y += … , in integers within each group g.
///
/// Codes come in 32-bit words: four of 8 bits, shifted by 128; two of 16 bits; or split into one to
/// three planes of bytes, q = Σ_b 256^b q_b, of which the highest is signed.
struct CodeProduct {
  int64_t rows;
  int words;        // per row of weights
  int group_words;  // that share a step
  int groups;
  int out;
  int planes;                 // of split codes
  const int32_t* x;           // [rows][words], or [rows][planes][words] from the highest byte down,
                              // with room for rows to a multiple of 16
  const float* scales;        // [rows]
  const int32_t* weight;      // [⌈out/panel⌉][words][panel]
  const float* steps;         // [⌈out/panel⌉][groups][panel]
  const int32_t* offsets;     // [⌈out/panel⌉][groups][panel] what each sum starts from
  const float* bias;          // [out] or [species][out], or null
  const int32_t* bias_index;  // [rows] species, or null
  float* y;
  int64_t ldy;
  bool add;
};

/// Directions of vectors shorter than this share of 1, which round to zero, are not stretched
/// further.
inline constexpr float kSmallestSide = 1e-3f;

inline constexpr int kMostGroups = 8;  // in products of split codes

/// Whether tiles of 8 or 16 words cut the groups evenly, and there are not too many.
constexpr bool split_fits(int words, int group_words) {
  return group_words >= words ? words % 16 == 0
                              : words % group_words == 0 && words / group_words <= kMostGroups &&
                                    (group_words == 8 || group_words % 16 == 0);
}

/// The reverse of the edge pass in 16-bit floats, of layers that `halves_fit`.
struct HalfKernels {
  void (*narrow)(int64_t n, const float* x, uint16_t* y);
  /// As `Kernels::filters`.
  void (*filters)(const Edges&, const Attention&, int64_t from, int64_t to, uint16_t* values,
                  uint16_t* slopes);
  /// Fills `halves` and `half_scales` of atoms from … to, which `backward` wants of all atoms.
  void (*gradients)(const Attention&, const AttentionGradient&, int64_t from, int64_t to);
  /// As `Kernels::attention_backward`.
  void (*backward)(const Edges&, const Attention&, const AttentionGradient&, int64_t from,
                   int64_t to, float* scratch);
};

/// Whether channels come in whole blocks of 32, whatever heads these belong to.
constexpr bool halves_fit(int scalars, int channels, int max_degree) {
  return max_degree <= 2 && scalars % 32 == 0 && channels % 32 == 0;
}

struct Bfloat16Kernels;

struct Kernels {
  const char* name;
  int panel;  // output channels that a packed float weight keeps side by side

  /// Y = X Wᵀ + b, or Y += … . weight: [⌈out/panel⌉][in][panel].
  void (*gemm)(int64_t rows, int in, int out, const float* x, int64_t ldx, const float* weight,
               const float* bias, float* y, int64_t ldy, bool add);

  /// y = (x − mean)/σ · g + b; keeps the normalised x and 1/σ for the reverse pass.
  void (*layer_norm)(int64_t rows, int n, const float* x, const float* gain, const float* bias,
                     float* normal, float* inverse, float* y, int64_t ldy);
  void (*layer_norm_backward)(int64_t rows, int n, const float* dy, int64_t ldy, const float* gain,
                              const float* normal, const float* inverse, float* dx);

  /// y = x/‖x‖ within each head, or a copy; then rounding to `highest` codes where it is not 0;
  /// `scaled` = factor_h · rounded y.
  void (*heads)(int64_t rows, int heads, int width, const float* x, int64_t ldx, bool normalise,
                int highest, const float* factor, float* normal, float* inverse, float* scaled);
  /// In place: from ∂E/∂scaled to ∂E/∂x.
  void (*heads_backward)(int64_t rows, int heads, int width, bool normalise, const float* factor,
                         const float* normal, const float* inverse, float* dx, int64_t ldx);

  void (*silu)(int64_t n, const float* x, float* y);
  /// In place: dy becomes dx.
  void (*silu_backward)(int64_t n, const float* x, float* dy);

  /// Filters of pairs from … to, [to − from][stride], and their slopes unless those are null.
  void (*filters)(const Edges&, const Attention&, int64_t from, int64_t to, float* values,
                  float* slopes);
  /// Of atoms from … to. The reverse wants first the sums (softmax only), then the rest, of all
  /// atoms, before the queries'.
  void (*attention)(const Edges&, const Attention&, int64_t from, int64_t to, float* scratch);
  void (*attention_sums_backward)(const Attention&, const AttentionGradient&, int64_t from,
                                  int64_t to);
  void (*attention_backward)(const Edges&, const Attention&, const AttentionGradient&, int64_t from,
                             int64_t to, float* scratch);
  void (*attention_query_backward)(const Edges&, const Attention&, const AttentionGradient&,
                                   int64_t from, int64_t to);
  const HalfKernels* halves;  // or null

  /// Σ_{f ∈ h} a_i w_ij b_j of every edge i ← j of atoms from … to. Shape: dots [n_edges][heads].
  void (*edge_dots)(const Edges&, const PairProducts&, const float* receiver, int64_t receiver_ld,
                    const float* sender, int64_t sender_ld, int64_t from, int64_t to, float* dots);
  /// s_i += Σ_j c_ij w_ij b_j, with c_ji where `reverse`. Shape: coefficients [n_edges][heads].
  void (*edge_sums)(const Edges&, const PairProducts&, const float* coefficients, bool reverse,
                    const float* source, int64_t ld, int64_t from, int64_t to, float* sums,
                    int64_t sums_ld);
  /// c_ij a_i b_j + c_ji a_j b_i of pairs from … to, in rows that begin with pair `from`.
  void (*filter_gradients)(const Edges&, const PairProducts&, const int64_t* edge_of_pair,
                           const float* coefficients, const float* receiver, const float* sender,
                           int64_t ld, int64_t from, int64_t to, float* gradients,
                           int64_t gradient_ld);

  /// s_c = Σ_m U_mc T_mc · factor, with U and T side by side in rows of 2C.
  void (*vector_dot)(int64_t atoms, int components, int channels, const float* ut, float factor,
                     float* s, int64_t lds);
  /// dut is set; U's also takes gate_c dy of y = gate_c U, unless dy is null.
  void (*vector_dot_backward)(int64_t atoms, int components, int channels, const float* ut,
                              float factor, const float* ds, int64_t lds, const float* gate,
                              int64_t ldg, const float* dy, float* dut);
  void (*couple)(int64_t atoms, int channels, const Coupling&, const float* ut1, const float* ut2,
                 float* product);
  void (*couple_backward)(int64_t atoms, int channels, const Coupling&, const float* ut1,
                          const float* ut2, const float* d_product, float* dut1, float* dut2);
  /// y = gate_c (U + P) + base, rows of C; P and base may be null.
  void (*gate)(int64_t atoms, int components, int channels, const float* gate, int64_t ldg,
               const float* ut, const float* product, const float* base, float* y);
  /// d_gate and d_product are set, the latter unless P is null; ∂U is for `vector_dot_backward`.
  void (*gate_backward)(int64_t atoms, int components, int channels, const float* gate, int64_t ldg,
                        const float* ut, const float* product, const float* dy, float* d_gate,
                        int64_t ldd, float* d_product);
  /// y = D x + base: components turned by an [n][n] matrix per atom, or its transpose; base may be
  /// null, or y.
  void (*rotate)(int64_t atoms, int components, int channels, const float* matrices, bool transpose,
                 const float* x, const float* base, float* y);
  /// y = a + b, either of which may be y.
  void (*add)(int64_t n, const float* a, const float* b, float* y);

  /// Products of 16-bit codes; of 8-bit codes and of split codes, null where those are no faster.
  /// Split codes need `split_fits(words, group_words)`; their planes follow from `highest`.
  void (*gemm_codes16)(const CodeProduct&);
  void (*gemm_codes8)(const CodeProduct&);
  int codes8_limit;  // of |w| for products of 8-bit codes
  void (*gemm_split)(const CodeProduct&);
  void (*round_rows16)(const CodeRows&);
  void (*round_rows8)(const CodeRows&);
  void (*round_split)(const CodeRows&);
  /// Gives up what products of codes hold of the processor. To be called before other code runs.
  void (*release)();
  /// v̂ with magnitude and direction rounded apart (`mddq`, or `mddq-cube`).
  void (*round_vectors)(int64_t atoms, int components, int channels, const float* v,
                        int magnitude_highest, int direction_highest, bool cube, float* rounded);
  /// In place: from ∂E/∂v̂ to ∂E/∂v, straight through the rounding.
  void (*round_vectors_backward)(int64_t atoms, int components, int channels, const float* v,
                                 int magnitude_highest, int direction_highest, bool cube,
                                 float* gradient);
  const Bfloat16Kernels* bfloat16;  // or null
};

const Kernels& portable_kernels();
const Kernels& neon_kernels();
const Kernels& avx2_kernels();
const Kernels& avxvnni_kernels();
const Kernels& avx512_kernels();
const Kernels& amx_kernels();
const HalfKernels& half_kernels();
/// Null where the processor lacks AVX512-FP16.
const HalfKernels* find_half_kernels();
/// Asks the operating system for the tile registers.
bool amx_permitted();

/// The fastest table that this processor can run, or the named one (nullptr if it cannot).
const Kernels& best_kernels();
const Kernels* find_kernels(const char* name);
/// Names of the tables that this processor can run, fastest first, ended by nullptr.
const char* const* kernel_names();

}  // namespace equibit
