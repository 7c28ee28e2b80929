// What a decode step computes once for every row, in one operation each where PyTorch takes several:
// an adapter's product (and the adapter itself, made ready for that), one token's attention, and
// where its key and value are kept.
//
// float32 on a CPU, adapters in 16 bits, last axes contiguous. Plain loops that a compiler vectorises; `kernels.py`
// compiles and loads this file. Knows tensors; knows nothing of models.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>
#include <vector>

// One library for every processor: the loader picks the widest clone that this one has.
#if defined(__x86_64__) && defined(__linux__)
#define EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EVERY_PROCESSOR
#endif
#define INLINE static inline __attribute__((always_inline))

namespace {

using at::Tensor;

using Short = int16_t;  // a number of an adapter, times its row's factor

constexpr int64_t LEAST_WORK = 1 << 16;  // multiplications that are worth a thread of their own
constexpr int64_t AHEAD = 16;            // keys, or values, that are asked of memory beforehand
constexpr int64_t LINE = 64;             // bytes of the processor's cache
constexpr int64_t MOST_ASKED = 1 << 15;  // bytes at once: more would push each other out again
constexpr float HIDDEN = -1e30f;         // what a mask adds to a column that is not to be seen

int64_t share(int64_t work_of_one) {
  return std::max<int64_t>(1, LEAST_WORK / std::max<int64_t>(1, work_of_one));
}

// What is read next, and too far away for the processor to see by itself.
template <typename T>
INLINE void ask_for(const T* from, int64_t numbers) {
  const char* first = reinterpret_cast<const char*>(from);
  const int64_t bytes = std::min<int64_t>(numbers * sizeof(T), MOST_ASKED);
  for (int64_t i = 0; i < bytes; i += LINE) __builtin_prefetch(first + i);
}

// rows (n, width), which begin `stride` apart, times x (width): to + scale * that; four rows at a time
// read x once, and rows further on are asked for.
template <typename T>
INLINE void product(
    const float* x, const T* rows, int64_t stride, const float* to, float* out, int64_t n,
    int64_t width, float scale, int64_t ahead) {
  int64_t k = 0;
  for (; k + 4 <= n; k += 4) {
    const T *a = rows + k * stride, *b = a + stride, *c = b + stride, *d = c + stride;
    for (int64_t row = 0; row < 4; ++row) ask_for(a + (ahead + row) * stride, width);
    float sa = 0, sb = 0, sc = 0, sd = 0;
#pragma omp simd reduction(+ : sa, sb, sc, sd)
    for (int64_t i = 0; i < width; ++i) {
      sa += x[i] * static_cast<float>(a[i]);
      sb += x[i] * static_cast<float>(b[i]);
      sc += x[i] * static_cast<float>(c[i]);
      sd += x[i] * static_cast<float>(d[i]);
    }
    out[k] = (to ? to[k] : 0) + scale * sa, out[k + 1] = (to ? to[k + 1] : 0) + scale * sb;
    out[k + 2] = (to ? to[k + 2] : 0) + scale * sc, out[k + 3] = (to ? to[k + 3] : 0) + scale * sd;
  }
  for (; k < n; ++k) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) sum += x[i] * static_cast<float>(rows[k * stride + i]);
    out[k] = (to ? to[k] : 0) + scale * sum;
  }
}

// ---- y + scale * B (A x) ----

// out (n) gets the sum of R rows (R, n), h of each.
template <int64_t R>
INLINE void add_rows(const float* h, const Short* rows, float* out, int64_t n) {
#pragma omp simd
  for (int64_t k = 0; k < n; ++k) {
    float sum = out[k];
    for (int64_t i = 0; i < R; ++i) sum += h[i] * static_cast<float>(rows[i * n + k]);
    out[k] = sum;
  }
}

// Tokens begin to end, of which `each` in a row have one slot.
EVERY_PROCESSOR void add_adapters(
    const float* x, const Short* a, const Short* b, const float* factors, const int64_t* slots,
    float* out, int64_t begin, int64_t end, int64_t each, int64_t in, int64_t n, int64_t r,
    float scale) {
  std::vector<float> h(r);
  for (int64_t i = begin; i < end; ++i) {
    const int64_t slot = slots[i / each];
    if (!slot) continue;
    const Short* up = b + slot * r * n;
    ask_for(up, r * n);
    product(x + i * in, a + slot * r * in, in, nullptr, h.data(), r, in, scale, 4);
    for (int64_t k = 0; k < r; ++k) h[k] *= factors[slot * r + k];
    if (i + 1 < end) ask_for(a + slots[(i + 1) / each] * r * in, r * in);
    int64_t k = 0;
    for (; k + 8 <= r; k += 8) add_rows<8>(&h[k], up + k * n, out + i * n, n);
    for (; k < r; ++k) add_rows<1>(&h[k], up + k * n, out + i * n, n);
  }
}

// output (..., N), changed in place; inputs (..., I); of S slots a (S, R, I), b (S, R, N), which is B the
// other way round, and factors (S, R) of both; slots (B,), of an equal share of the tokens each in
// turn. Slot 0 adds nothing.
Tensor add_lora(
    const Tensor& output, const Tensor& inputs, const Tensor& a, const Tensor& b,
    const Tensor& factors, const Tensor& slots, double scale) {
  const Tensor x = inputs.contiguous();
  const int64_t in = a.size(2), n = b.size(2), r = a.size(1), tokens = x.numel() / in;
  for (const Tensor& t : {output, a, b, factors, slots}) {
    TORCH_CHECK(t.is_contiguous(), "no views");
  }
  TORCH_CHECK(b.size(1) == r && factors.size(1) == r && output.size(-1) == n, "parts do not fit");
  TORCH_CHECK(slots.numel() && tokens % slots.numel() == 0, "slots have equal shares of the tokens");
  const float* xp = x.const_data_ptr<float>();
  const Short *ap = a.const_data_ptr<Short>(), *bp = b.const_data_ptr<Short>();
  const float* fp = factors.const_data_ptr<float>();
  const int64_t* sp = slots.const_data_ptr<int64_t>();
  float* op = output.mutable_data_ptr<float>();
  const int64_t each = std::max<int64_t>(1, tokens / slots.numel());
  at::parallel_for(0, tokens, share(r * (in + n)), [&](int64_t begin, int64_t end) {
    add_adapters(
        xp, ap, bp, fp, sp, op, begin, end, each, in, n, r, static_cast<float>(scale));
  });
  return output;
}

// ---- an adapter in 16 bits ----

// rows begin to end, each `width` long, and the factor by which its longest number fits; NaN where a
// row has a number that is none.
EVERY_PROCESSOR void shorten(
    const float* rows, Short* out, float* factors, int64_t begin, int64_t end, int64_t width) {
  constexpr float MOST = std::numeric_limits<Short>::max(), LEAST = 1e-30f;  // less is nothing
  for (int64_t k = begin; k < end; ++k) {
    const float* row = rows + k * width;
    float longest = 0, odd = 0;
#pragma omp simd reduction(max : longest) reduction(+ : odd)
    for (int64_t i = 0; i < width; ++i) {
      const float size = std::fabs(row[i]);
      longest = size > longest ? size : longest;
      odd += row[i] - row[i];
    }
    const bool usable = odd == 0 && longest > LEAST;
    const float inverse = usable ? MOST / longest : 0;
    factors[k] = longest / MOST + odd;
    for (int64_t i = 0; i < width; ++i) {
      out[k * width + i] = usable ? static_cast<Short>(std::nearbyint(row[i] * inverse)) : 0;
    }
  }
}

// rows (..., W) as integers, and factors (...).
std::tuple<Tensor, Tensor> in_16_bits(const Tensor& rows) {
  const Tensor from = rows.contiguous();
  Tensor out = at::empty(from.sizes(), from.options().dtype(at::kShort));
  Tensor factors = at::empty(from.sizes().slice(0, from.dim() - 1), from.options());
  const float* fp = from.const_data_ptr<float>();
  Short* op = out.mutable_data_ptr<Short>();
  float* sp = factors.mutable_data_ptr<float>();
  shorten(fp, op, sp, 0, factors.numel(), from.size(-1));
  return {out, factors};
}

// ---- attention of one new token a row ----

// e to the x, for x up to 0, to 2e-7 of itself (Cephes' expf); a call would not be vectorised.
INLINE float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  const float n = std::nearbyint(x * 1.44269504f);
  const float f = x - n * 0.693359375f + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return p * power;
}

// Of n scores, in place; returns their sum.
INLINE float exponentials(float* s, int64_t n) {
  float top = -std::numeric_limits<float>::infinity(), sum = 0;
#pragma omp simd reduction(max : top)
  for (int64_t w = 0; w < n; ++w) top = s[w] > top ? s[w] : top;
#pragma omp simd reduction(+ : sum)
  for (int64_t w = 0; w < n; ++w) {
    s[w] = exponential(s[w] - top);
    sum += s[w];
  }
  return sum;
}

// out (width) gets the sum of n values, p of each.
INLINE void mix(
    const float* p, const float* values, int64_t stride, float* out, int64_t n, int64_t width) {
  int64_t w = 0;
  for (; w + 4 <= n; w += 4) {
    const float *a = values + w * stride, *b = a + stride, *c = b + stride, *d = c + stride;
    for (int64_t row = 0; row < 4; ++row) ask_for(a + (AHEAD + row) * stride, width);
    const float pa = p[w], pb = p[w + 1], pc = p[w + 2], pd = p[w + 3];
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) out[i] += pa * a[i] + pb * b[i] + pc * c[i] + pd * d[i];
  }
  for (; w < n; ++w) {
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) out[i] += p[w] * values[w * stride + i];
  }
}

// Over n columns. A head's width is known to the compiler (W > 0) or not (W = 0).
template <int64_t W>
INLINE void attend_head(
    const float* q, const float* keys, int64_t key_stride, const float* values,
    int64_t value_stride, const float* mask, int64_t n, int64_t key_width, int64_t value_width,
    float scale, float* s, float* out) {
  const int64_t kw = W ? W : key_width, vw = W ? W : value_width;
  product(q, keys, key_stride, mask, s, n, kw, scale, AHEAD);
  const float sum = exponentials(s, n);
  float local[W ? W : 1];  // a compiler keeps it in registers
  float* mixed = W ? local : out;
  for (int64_t i = 0; i < vw; ++i) mixed[i] = 0;
  mix(s, values, value_stride, mixed, n, vw);
  for (int64_t i = 0; i < vw; ++i) out[i] = mixed[i] / sum;
}

struct Heads {
  const float* at;
  int64_t row, head, column;  // strides
  int64_t count, width;

  const float* of(int64_t b, int64_t h) const { return at + b * row + h * head; }
};

Heads heads_of(const Tensor& t) {
  return {t.const_data_ptr<float>(), t.stride(0), t.stride(1), t.stride(2), t.size(1), t.size(3)};
}

// Heads begin to end of all rows' in turn.
EVERY_PROCESSOR void attend_heads(
    const Heads& q, const Heads& k, const Heads& v, const float* masks, int64_t mask_row,
    int64_t columns, float scale, float* out, int64_t begin, int64_t end) {
  std::vector<float> s(columns);
  int64_t row = -1, first = 0, last = 0;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t b = i / q.count, h = i % q.count, group = h / (q.count / k.count);
    const float* mask = masks + b * mask_row;
    if (b != row) {  // what is hidden at both ends is not read, by any of a row's heads
      row = b, first = 0, last = columns;
      while (last > 1 && mask[last - 1] < HIDDEN) --last;
      while (first < last - 1 && mask[first] < HIDDEN) ++first;
    }
    const auto head = [&](auto width) __attribute__((always_inline)) {
      attend_head<decltype(width)::value>(
          q.of(b, h), k.of(b, group) + first * k.column, k.column,
          v.of(b, group) + first * v.column, v.column, mask + first, last - first, q.width,
          v.width, scale, s.data(), out + i * v.width);
    };
    switch (q.width == v.width ? q.width : 0) {
      case 32: head(std::integral_constant<int64_t, 32>{}); break;
      case 64: head(std::integral_constant<int64_t, 64>{}); break;
      case 128: head(std::integral_constant<int64_t, 128>{}); break;
      default: head(std::integral_constant<int64_t, 0>{});
    }
  }
}

// query (B, H, 1, D), keys (B, G, W, D) and values (B, G, W, E) of G heads that H share, mask
// (B, 1, 1, W) that is added to the scores; (B, 1, H, E).
Tensor attend(
    const Tensor& query, const Tensor& keys, const Tensor& values, const Tensor& mask,
    double scale) {
  TORCH_CHECK(query.size(2) == 1, "one token a row");
  const int64_t rows = query.size(0), columns = keys.size(2);
  const Heads q = heads_of(query), k = heads_of(keys), v = heads_of(values);
  Tensor out = at::empty({rows, 1, q.count, v.width}, query.options());
  const float* masks = mask.const_data_ptr<float>();
  const int64_t mask_row = mask.size(0) == 1 ? 0 : mask.stride(0);
  float* op = out.mutable_data_ptr<float>();
  const int64_t grain = share(columns * (q.width + v.width));
  at::parallel_for(0, rows * q.count, grain, [&](int64_t begin, int64_t end) {
    attend_heads(q, k, v, masks, mask_row, columns, static_cast<float>(scale), op, begin, end);
  });
  return out;
}

// ---- keys and values ----

// kept (R, H, C, D) gets states (B, H, T, D) at rows (B, 1) and columns (B, T).
void store(const Tensor& kept, const Tensor& states, const Tensor& rows, const Tensor& columns) {
  const int64_t tokens = states.size(2);
  float* to = kept.mutable_data_ptr<float>();
  const float* from = states.const_data_ptr<float>();
  const int64_t *row = rows.const_data_ptr<int64_t>(), *column = columns.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < states.size(0); ++b) {
    for (int64_t t = 0; t < tokens; ++t) {
      float* place = to + row[b] * kept.stride(0) + column[b * tokens + t] * kept.stride(2);
      const float* state = from + b * states.stride(0) + t * states.stride(2);
      for (int64_t h = 0; h < states.size(1); ++h) {
        std::memcpy(place + h * kept.stride(1), state + h * states.stride(1),
                    states.size(3) * sizeof(float));
      }
    }
  }
}

}  // namespace

TORCH_LIBRARY(innerloop, m) {
  m.def(
      "add_lora(Tensor(a!) output, Tensor inputs, Tensor a, Tensor b, Tensor factors,"
      " Tensor slots, float scale) -> Tensor(a!)");
  m.def("in_16_bits(Tensor rows) -> (Tensor, Tensor)");
  m.def("attend(Tensor query, Tensor keys, Tensor values, Tensor mask, float scale) -> Tensor");
  m.def("store(Tensor(a!) kept, Tensor states, Tensor rows, Tensor columns) -> ()");
}

TORCH_LIBRARY_IMPL(innerloop, CPU, m) {
  m.impl("add_lora", add_lora);
  m.impl("in_16_bits", in_16_bits);
  m.impl("attend", attend);
  m.impl("store", store);
}
