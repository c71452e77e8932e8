// The reverse of the edge pass in 16-bit floats (AVX512-FP16), 32 channels to a register.
//
// Every row of gradients, and of what an atom sends, is scaled by a power of two of its own, so that
// its largest lies between 2 and 4: neither overflows, and what underflows is below 2⁻²⁴ of that.
// Sums over edges pass on to float32 every other edge, sums over channels at the end of an edge.

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

/// Filters of one pair and their slopes. Values of splines sum to 1 and their slopes to 0, so with
/// D_t = c_{t+1} − c_t, Σ_t v_t c_t = c_1 − v_0 D_0 + (v_2 + v_3) D_1 + v_3 D_2 and likewise without
/// c_1; small differences bear the rounding of v that c would not.
EQUIBIT_INLINE void half_filter_row(const Edges& edges, const Attention& a, int64_t p,
                                    Half* values, Half* slopes) {
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
  static constexpr int kChannels = 32, kLanes = 16;

  Halves(const Edges& edges, const Attention& a, const AttentionGradient& g, float* scratch)
      : edges_(edges), a_(a), g_(g), row_(half_row(a)) {
    value = own_ = reinterpret_cast<Half*>(scratch);
    d_value = sums_ = own_ + row_;
    filter_scratch_ = sums_ + row_;
    for (int l = 1; l <= L; ++l) {
      vectors[l] = own_ + part(l);
      d_vectors[l] = sums_ + part(l);
    }
  }

  static int heads_per_block(const Attention& a) { return a.scalars == 16 * a.heads ? 2 : 1; }
  static EQUIBIT_INLINE Block weight(const float* weights, int heads) {
    const Block low = Block::fill(weights[0]);
    if (heads == 1) return low;
    const Block high = Block::fill(weights[1]);
    return {_mm512_castsi512_ph(_mm512_mask_blend_epi16(0xffff0000u, _mm512_castph_si512(low.v),
                                                        _mm512_castph_si512(high.v)))};
  }
  static EQUIBIT_INLINE Lanes<16> spread(const Block& x) { return x.low() + x.high(); }
  static EQUIBIT_INLINE void store_heads(const Block& x, int heads, float* lanes) {
    if (heads == 1) {
      spread(x).store(lanes);
    } else {
      x.low().store(lanes);
      x.high().store(lanes + 16);
    }
  }
  static EQUIBIT_INLINE float number(Half x) { return _cvtsh_ss(x); }

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

  // Of atom k and of the edge at hand; see `Floats`.
  const Half *value, *filters, *slopes, *gradient;
  Half* d_value;
  const Half *vectors[L + 1], *messages[L + 1];
  Half* d_vectors[L + 1];
  float share;     // of the weight, the sums of all edges having one scale
  float apart;     // undoes the scales of what one edge sums
  float together;  // undoes those of what was multiplied by a weight

 private:
  static constexpr int kMostWaiting = 2;  // edges, in sums of 16 bits

  int64_t part(int l) const { return a_.scalars + (L + l * l - 1) * a_.channels; }
  EQUIBIT_INLINE void clear() {
    for (int64_t c = 0; c < row_; c += 32) Block::fill(0.0f).store(sums_ + c);
  }
  EQUIBIT_INLINE void pass_on() {
    waiting_ = 0;
    if (a_.first) return;
    const Lanes<16> factor = Lanes<16>::fill(1.0f / common_);
    const auto add = [&](int64_t from, int64_t size, float* to) EQUIBIT_INLINE_LAMBDA {
      for (int64_t c = 0; c < size; c += 16) accumulate<16>(to + c, factor * widened(sums_ + from + c));
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
  Half *own_, *sums_, *filter_scratch_;
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
  with_degree(a, [&]<int L>() {
    attention_rows_backward<Halves<L>, L>(edges, a, g, from, to, scratch);
  });
}

}  // namespace

const HalfKernels& half_kernels() {
  static constexpr HalfKernels table = {
      .narrow = narrow_all, .filters = filters, .gradients = gradients, .backward = backward};
  return table;
}

}  // namespace equibit
