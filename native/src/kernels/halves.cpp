// The reverse of the edge pass in 16-bit floats (AVX512-FP16), 32 channels to a register.
//
// Every row of gradients, and of what an atom sends, is scaled by a power of two of its own, so
// that its largest lies between 2 and 4: neither overflows, and what underflows is below 2⁻²⁴ of
// that. Sums over edges pass on to float32 every fourth edge, sums over channels once eight are
// left of them at the end of an edge.

#include <cstdint>

#include <immintrin.h>

#include "kernels/kernels.h"

namespace equibit {
namespace {

#include "kernels/lanes.inc"
#include "kernels/columns.inc"
#include "kernels/filter_row.inc"
#include "kernels/attention_backward.inc"

typedef uint16_t Half __attribute__((may_alias));

EQUIBIT_INLINE Lanes<16> widened(const Half* x) {
  return {{(Float16)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)))}};
}
EQUIBIT_INLINE void narrow(const Lanes<16>& x, Half* to) {
  const __m256i halves = _mm512_cvtps_ph((__m512)x.v[0], _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), halves);
}

/// 32 numbers of 16 bits.
struct HalfBlock {
  __m512h v;

  static EQUIBIT_INLINE HalfBlock load(const Half* p) { return {_mm512_loadu_ph(p)}; }
  /// Zeros beyond n. Of 16 or fewer only half a register is read, which a store may just have
  /// filled.
  static EQUIBIT_INLINE HalfBlock load_first(int n, const Half* p) {
    const __mmask32 mask = n < 32 ? (1u << n) - 1 : ~0u;
    if (n > 16) return {_mm512_castsi512_ph(_mm512_maskz_loadu_epi16(mask, p))};
    return {_mm512_castsi512_ph(
        _mm512_zextsi256_si512(_mm256_maskz_loadu_epi16(static_cast<__mmask16>(mask), p)))};
  }
  static EQUIBIT_INLINE HalfBlock fill(float x) {
    return {_mm512_set1_ph(static_cast<_Float16>(x))};
  }
  EQUIBIT_INLINE void store(Half* p) const { _mm512_storeu_ph(p, v); }
  EQUIBIT_INLINE Lanes<16> low() const {
    const __m512i bits = _mm512_castph_si512(v);
    return {{(Float16)_mm512_cvtph_ps(_mm512_castsi512_si256(bits))}};
  }
  EQUIBIT_INLINE Lanes<16> high() const {
    const __m512i bits = _mm512_castph_si512(v);
    return {{(Float16)_mm512_cvtph_ps(_mm512_extracti64x4_epi64(bits, 1))}};
  }
  friend EQUIBIT_INLINE HalfBlock operator+(const HalfBlock& a, const HalfBlock& b) {
    return {a.v + b.v};
  }
  friend EQUIBIT_INLINE HalfBlock operator*(const HalfBlock& a, const HalfBlock& b) {
    return {a.v * b.v};
  }
  EQUIBIT_INLINE void operator+=(const HalfBlock& b) { v = v + b.v; }
};

/// Two quarters of a and two of b, which `Choice` names by two bits each.
template <int Choice>
EQUIBIT_INLINE HalfBlock quarters(const HalfBlock& a, const HalfBlock& b) {
  return {_mm512_castsi512_ph(
      _mm512_shuffle_i64x2(_mm512_castph_si512(a.v), _mm512_castph_si512(b.v), Choice))};
}

/// Sums of eight: Σ x_0 … x_7, Σ x_8 … x_15, and those of y.
EQUIBIT_INLINE Lanes<4> sum_eights(const Lanes<16>& x, const Lanes<16>& y) {
  const Float16 a = x.v[0], b = y.v[0];
  const Float16 two =
      __builtin_shufflevector(a, b, 0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30) +
      __builtin_shufflevector(a, b, 1, 3, 17, 19, 5, 7, 21, 23, 9, 11, 25, 27, 13, 15, 29, 31);
  const Float16 four =
      two + __builtin_shufflevector(two, two, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  return {{__builtin_shufflevector(four, four, 0, 8, 2, 10) +
           __builtin_shufflevector(four, four, 1, 9, 3, 11)}};
}

/// Filters of one pair and their slopes. Values of splines sum to 1 and their slopes to 0, so with
/// D_t = c_{t+1} − c_t, Σ_t v_t c_t = c_1 − v_0 D_0 + (v_2 + v_3) D_1 + v_3 D_2 and likewise
/// without c_1; small differences bear the rounding of v that c would not.
EQUIBIT_INLINE void half_filter_row(const Edges& edges, const Attention& a, int64_t p, Half* values,
                                    Half* slopes) {
  using V = HalfBlock;
  const int64_t stride = a.half_stride, at = edges.tap[p] * stride;
  const Half* middle = a.half_table + at + stride;
  const Half* differences = a.half_differences + at;
  const float *v = edges.taps + 4 * p, *s = edges.slopes + 4 * p;
  const V tap[3] = {V::fill(-v[0]), V::fill(v[2] + v[3]), V::fill(v[3])};
  const V slope[3] = {V::fill(-s[0]), V::fill(s[2] + s[3]), V::fill(s[3])};
  for (int64_t c = 0; c < stride; c += 32) {
    V difference = V::load(differences + c);
    V value = V::load(middle + c) + tap[0] * difference, derivative = slope[0] * difference;
    for (int t = 1; t < 3; ++t) {
      difference = V::load(differences + t * stride + c);
      value += tap[t] * difference;
      derivative += slope[t] * difference;
    }
    value.store(values + c);
    derivative.store(slopes + c);
  }
}

/// Power of two that takes x to between 2 and 4; at most 2⁶⁰, at least 2⁻⁶⁰.
inline float scale_of(float x) {
  const int exponent = static_cast<int>(__builtin_bit_cast(uint32_t, x) >> 23 & 0xff);
  int wanted = 255 - exponent;
  if (wanted > 127 + 60) wanted = 127 + 60;
  if (wanted < 127 - 60) wanted = 127 - 60;
  return __builtin_bit_cast(float, static_cast<uint32_t>(wanted) << 23);
}

/// Rows that follow each other as one of 16-bit numbers, and what they were multiplied by.
template <int Parts>
EQUIBIT_INLINE float halve(const float* const (&parts)[Parts], const int64_t (&sizes)[Parts],
                           const int64_t (&places)[Parts], Half* to) {
  using V = Lanes<16>;
  V most = V::fill(0.0f);
  for (int part = 0; part < Parts; ++part) {
    for (int64_t c = 0; c < sizes[part]; c += 16) {
      most = larger(most, magnitude(V::load(parts[part] + c)));
    }
  }
  const float scale = scale_of(largest(most));
  const V factor = V::fill(scale);
  for (int part = 0; part < Parts; ++part) {
    for (int64_t c = 0; c < sizes[part]; c += 16) {
      narrow(factor * V::load(parts[part] + c), to + places[part] + c);
    }
  }
  return scale;
}

template <int L>
class Halves {
 public:
  using Block = HalfBlock;
  using Number = Half;
  static constexpr int kChannels = 32;
  static constexpr bool kHeadsApart = false;

  Halves(const Edges& edges, const Attention& a, const AttentionGradient& g, float* scratch)
      : edges_(edges),
        a_(a),
        g_(g),
        row_(half_row(a)),
        width_(a.scalars / a.heads),
        vector_width_(a.channels / a.heads) {
    value = own_ = reinterpret_cast<Half*>(scratch);
    d_value = sums_ = own_ + row_;
    kept_ = sums_ + row_;
    head_of_ = kept_ + a.scalars + a.channels;
    filter_scratch_ = head_of_ + a.scalars + a.channels;
    Half* head = head_of_;
    const int widths[2] = {width_, vector_width_};
    for (const int width : widths) {
      for (int h = 0; h < a.heads; ++h) {
        for (int c = 0; c < width; ++c) *head++ = static_cast<Half>(h);
      }
    }
    for (int l = 1; l <= L; ++l) {
      vectors[l] = own_ + part(l);
      d_vectors[l] = sums_ + part(l);
    }
  }

  EQUIBIT_INLINE void weigh(float factor, const float* raw) {
    const auto part = [&](int first) EQUIBIT_INLINE_LAMBDA {
      const int left = a_.heads - first;
      const auto mask = static_cast<__mmask16>(left < 16 ? (1u << left) - 1 : 0xffff);
      const __m512 weights = _mm512_maskz_loadu_ps(mask, raw + first);
      return _mm512_cvtps_ph(_mm512_mul_ps(_mm512_set1_ps(factor), weights),
                             _MM_FROUND_TO_NEAREST_INT);
    };
    weights_ = _mm512_castsi256_si512(part(0));
    if (a_.heads > 16) weights_ = _mm512_inserti64x4(weights_, part(16), 1);
  }
  EQUIBIT_INLINE Block weight(int place) const {
    return {_mm512_castsi512_ph(
        _mm512_permutexvar_epi16(_mm512_loadu_si512(head_of_ + place), weights_))};
  }
  EQUIBIT_INLINE void keep(int place, const Block& x) { x.store(kept_ + place); }
  EQUIBIT_INLINE Block kept(int head) const {
    const Half* scalars = kept_ + head * width_;
    const Half* vectors = kept_ + a_.scalars + head * vector_width_;
    Block sum = Block::load_first(width_, scalars) + Block::load_first(vector_width_, vectors);
    for (int c = 32; c < width_; c += 32) sum += Block::load_first(width_ - c, scalars + c);
    for (int c = 32; c < vector_width_; c += 32) {
      sum += Block::load_first(vector_width_ - c, vectors + c);
    }
    return sum;
  }
  /// As `sum_rows`, in 16-bit floats until eight are left of each row.
  template <typename Row, typename To>
  static EQUIBIT_INLINE void sum(int n, const Row& row, const To& to) {
    const auto joined = [](const Block& a, const Block& b) EQUIBIT_INLINE_LAMBDA -> Block {
      return quarters<0x44>(a, b) + quarters<0xee>(a, b);
    };
    for (int k = 0; k < n; k += 4) {
      const auto two = [&](int first) EQUIBIT_INLINE_LAMBDA -> Block {
        const Block zero = Block::fill(0.0f);
        return first < n ? joined(row(first), first + 1 < n ? row(first + 1) : zero) : zero;
      };
      const Block ab = two(k), cd = two(k + 2);
      const Block all = quarters<0x88>(ab, cd) + quarters<0xdd>(ab, cd);
      const Lanes<4> sums = sum_eights(all.low(), all.high());
      if (k + 4 <= n) {
        to(k, sums);
      } else {
        for (int m = 0; k + m < n; ++m) to(k + m, Lanes<1>{sums.v[0][m]});
      }
    }
  }
  template <int W>
  static EQUIBIT_INLINE Lanes<W> numbers(const Half* x) {
    if constexpr (W == 1) {
      return {_cvtsh_ss(*x)};
    } else {
      return {{(Float4)_mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(x)))}};
    }
  }

  EQUIBIT_INLINE void open(int64_t k) {
    k_ = k;
    const float* sources[L + 1];
    int64_t sizes[L + 1], places[L + 1];
    sources[0] = a_.value + k * a_.value_ld;
    sizes[0] = a_.scalars + L * a_.channels;
    places[0] = 0;
    for (int l = 1; l <= L; ++l) {
      sizes[l] = a_.first ? 0 : static_cast<int64_t>(2 * l + 1) * a_.channels;
      sources[l] = a_.first ? nullptr : a_.vectors[l] + k * sizes[l];
      places[l] = part(l);
    }
    own_scale_ = halve(sources, sizes, places, own_);
    common_ = 1e30f;
    for (int64_t e = edges_.first[k]; e < edges_.first[k + 1]; ++e) {
      const float scale = g_.half_scales[edges_.sender[e]];
      common_ = scale < common_ ? scale : common_;
    }
    together = 1.0f / (common_ * own_scale_);
    waiting_ = 0;
    if (a_.first) return;
    start_sums<16, L>(a_, g_, k);
    clear();
  }
  EQUIBIT_INLINE void edge(int64_t i, int64_t p) {
    if (waiting_ == kMostWaiting) pass_on();
    ++waiting_;
    if (a_.half_filters != nullptr) {
      filters = a_.half_filters + p * a_.half_stride;
      slopes = a_.half_slopes + p * a_.half_stride;
    } else {
      half_filter_row(edges_, a_, p, filter_scratch_, filter_scratch_ + a_.half_stride);
      filters = filter_scratch_;
      slopes = filter_scratch_ + a_.half_stride;
    }
    gradient = g_.halves + i * row_;
    for (int l = 1; l <= L; ++l) messages[l] = gradient + part(l);
    share = common_ / g_.half_scales[i];
    apart = 1.0f / (g_.half_scales[i] * own_scale_);
  }
  EQUIBIT_INLINE void close() { pass_on(); }
  EQUIBIT_INLINE void sum_keys(int64_t count, const float* d_z, const int32_t* receiver,
                               float* d_key) const {
    with_width(width_, [&]<int B>() {
      sum_by_heads<B>(count, a_.heads, a_.scalars, d_z, a_.query, receiver, d_key);
    });
  }

  // Of atom k and of the edge at hand; see `Floats`.
  const Half *value, *filters, *slopes, *gradient;
  Half* d_value;
  const Half *vectors[L + 1], *messages[L + 1];
  Half* d_vectors[L + 1];
  float share;     // of the weight, the sums of all edges having one scale
  float apart;     // undoes the scales of what one edge sums
  float together;  // undoes those of what was multiplied by a weight

 private:
  static constexpr int kMostWaiting = 4;  // edges, in sums of 16 bits

  int64_t part(int l) const { return a_.scalars + (L + l * l - 1) * a_.channels; }
  EQUIBIT_INLINE void clear() {
    for (int64_t c = 0; c < row_; c += 32) Block::fill(0.0f).store(sums_ + c);
  }
  EQUIBIT_INLINE void pass_on() {
    waiting_ = 0;
    if (a_.first) return;
    const Lanes<16> factor = Lanes<16>::fill(1.0f / common_);
    const auto add = [&](int64_t from, int64_t size, float* to) EQUIBIT_INLINE_LAMBDA {
      for (int64_t c = 0; c < size; c += 16)
        accumulate<16>(to + c, factor * widened(sums_ + from + c));
    };
    add(0, a_.scalars + L * a_.channels, g_.value + k_ * g_.qkv_ld);
    for (int l = 1; l <= L; ++l) {
      const int64_t size = static_cast<int64_t>(2 * l + 1) * a_.channels;
      add(part(l), size, g_.vectors[l] + k_ * size);
    }
    clear();
  }

  const Edges& edges_;
  const Attention& a_;
  const AttentionGradient& g_;
  const int64_t row_;
  const int width_, vector_width_;  // of a head
  Half *own_, *sums_, *filter_scratch_;
  Half* kept_;     // [F + C] ∂E/∂p of every channel, scalars before vectors
  Half* head_of_;  // [F + C] likewise
  __m512i weights_;
  int64_t k_ = 0;
  int waiting_ = 0;
  float own_scale_ = 1.0f, common_ = 1.0f;
};

template <typename F>
inline void with_degree(const Attention& a, const F& f) {
  if (a.max_degree == 0) return f.template operator()<0>();
  if (a.max_degree == 1) return f.template operator()<1>();
  f.template operator()<2>();
}

void narrow_all(int64_t n, const float* x, uint16_t* y) {
  for (int64_t k = 0; k < n; ++k) y[k] = _cvtss_sh(x[k], _MM_FROUND_TO_NEAREST_INT);
}

void filters(const Edges& edges, const Attention& a, int64_t from, int64_t to, uint16_t* values,
             uint16_t* slopes) {
  for (int64_t p = from; p < to; ++p) {
    const int64_t at = (p - from) * a.half_stride;
    half_filter_row(edges, a, p, values + at, slopes + at);
  }
}

void gradients(const Attention& a, const AttentionGradient& g, int64_t from, int64_t to) {
  with_degree(a, [&]<int L>() {
    for (int64_t i = from; i < to; ++i) {
      const float* sources[L + 1] = {g.invariants + i * a.invariant_ld};
      int64_t sizes[L + 1] = {a.scalars + (a.first ? 0 : L * a.channels)}, places[L + 1] = {0};
      for (int l = 1; l <= L; ++l) {
        sizes[l] = static_cast<int64_t>(2 * l + 1) * a.channels;
        sources[l] = g.messages[l] + i * sizes[l];
        places[l] = a.scalars + (L + l * l - 1) * a.channels;
      }
      g.half_scales[i] = halve(sources, sizes, places, g.halves + i * half_row(a));
    }
  });
}

void backward(const Edges& edges, const Attention& a, const AttentionGradient& g, int64_t from,
              int64_t to, float* scratch) {
  with_degree(
      a, [&]<int L>() { attention_rows_backward<Halves<L>, L>(edges, a, g, from, to, scratch); });
}

}  // namespace

const HalfKernels& half_kernels() {
  static constexpr HalfKernels table = {
      .narrow = narrow_all, .filters = filters, .gradients = gradients, .backward = backward};
  return table;
}

}  // namespace equibit
