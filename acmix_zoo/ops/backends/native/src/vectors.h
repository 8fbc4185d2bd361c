// Vectors of LANES floats, in GCC's and Clang's vector extensions.
//
// The same source is compiled once for each instruction set. LANES is 16 for AVX-512, 8 for AVX2 and 4 for anything
// else, such as SSE2 or NEON. The compiler turns a product and a sum into one instruction (-ffp-contract=fast).
//
// Everywhere in this library, four heads lie next to each other in memory, so a vector holds LANES / 4 channels of four
// heads. With 16 lanes:
//
//     lane     0    1    2    3  |  4    5    6    7  |  8  …  15
//     channel  c    c    c    c  | c+1  c+1  c+1  c+1 | c+2 … c+3
//     head     0    1    2    3  |  0    1    2    3  |  0  …  3
#pragma once

#include <cstddef>
#include <cstdint>
#if LANES >= 8
#include <immintrin.h>  // for the few operations that GCC 12 would do through memory
#endif

#if defined(__clang__) ? __clang_major__ < 14 : __GNUC__ < 12
#error "the native CPU kernel needs GCC 12 or newer, or clang 14 or newer"
#endif
#ifndef LANES
#error "compile with -DLANES=16, 8 or 4"
#endif
#define INLINE static inline __attribute__((always_inline))

namespace {

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef float Vec4 __attribute__((vector_size(16)));
typedef float UnalignedVec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float UnalignedVec4 __attribute__((vector_size(16), aligned(4), may_alias));

// Heads that lie next to each other; queries whose logits share a vector.
constexpr int HEADS = 4;
constexpr int QUERIES = LANES / HEADS;

INLINE Vec load(const float* p) { return *(const UnalignedVec*)p; }
INLINE void store(float* p, Vec v) { *(UnalignedVec*)p = v; }
INLINE Vec4 load4(const float* p) { return *(const UnalignedVec4*)p; }
INLINE void store4(float* p, Vec4 v) { *(UnalignedVec4*)p = v; }
// A load that the compiler must not repeat as an operand of each instruction that needs the value: AVX-512 processors
// load as many vectors in a cycle as they multiply, or fewer.
INLINE Vec load_once(const float* p) {
  Vec v = load(p);
#if LANES >= 8
  asm("" : "+v"(v));
#endif
  return v;
}
INLINE Vec splat(float x) { return x - Vec{}; }
INLINE Vec larger(Vec a, Vec b) { return a > b ? a : b; }  // b where one of them is NaN

// The same four floats in each group of four lanes.
INLINE Vec repeat4(const float* p) {
#if LANES == 16
  return (Vec)_mm512_broadcast_f32x4(_mm_loadu_ps(p));
#elif LANES == 8
  return (Vec)_mm256_broadcast_ps((const __m128*)p);
#else
  return load4(p);
#endif
}

// Each head's lane gets the value of head + R, modulo four.
template <int R>
INLINE Vec rotate_heads(Vec v) {
  constexpr int A = R % 4, B = (R + 1) % 4, C = (R + 2) % 4, D = (R + 3) % 4;
#if LANES == 16
  return __builtin_shufflevector(v, v, A, B, C, D, A + 4, B + 4, C + 4, D + 4, A + 8, B + 8, C + 8, D + 8, A + 12, B + 12,
                                 C + 12, D + 12);
#elif LANES == 8
  return __builtin_shufflevector(v, v, A, B, C, D, A + 4, B + 4, C + 4, D + 4);
#else
  return __builtin_shufflevector(v, v, A, B, C, D);
#endif
}

// Of four channels at p, those of the I-th vector of a quad, each in the lanes of all four heads.
template <int I>
INLINE Vec spread_channels(const float* p) {
#if LANES == 16
  const Vec v = repeat4(p);
  return __builtin_shufflevector(v, v, 0, 0, 0, 0, 5, 5, 5, 5, 10, 10, 10, 10, 15, 15, 15, 15);
#elif LANES == 8
  const Vec v = repeat4(p);
  constexpr int A = 2 * I, B = 5 + 2 * I;
  return __builtin_shufflevector(v, v, A, A, A, A, B, B, B, B);
#else
  return splat(p[I]);
#endif
}

// Sum each query's vector over its channels: QUERIES vectors → one of QUERIES × 4 heads.
INLINE Vec sum_channels(const Vec* v) {
#if LANES == 16
  const Vec a = __builtin_shufflevector(v[0], v[1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
                __builtin_shufflevector(v[0], v[1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  const Vec b = __builtin_shufflevector(v[2], v[3], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
                __builtin_shufflevector(v[2], v[3], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
         __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
#elif LANES == 8
  return __builtin_shufflevector(v[0], v[1], 0, 1, 2, 3, 8, 9, 10, 11) +
         __builtin_shufflevector(v[0], v[1], 4, 5, 6, 7, 12, 13, 14, 15);
#else
  return v[0];
#endif
}

INLINE void transpose4(Vec4& a, Vec4& b, Vec4& c, Vec4& d) {
  const Vec4 ab0 = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab1 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Vec4 cd0 = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd1 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  a = __builtin_shufflevector(ab0, cd0, 0, 1, 4, 5);
  b = __builtin_shufflevector(ab0, cd0, 2, 3, 6, 7);
  c = __builtin_shufflevector(ab1, cd1, 0, 1, 4, 5);
  d = __builtin_shufflevector(ab1, cd1, 2, 3, 6, 7);
}

// A quad: 4 channels × 4 heads, in 16 / LANES vectors.
constexpr int QUAD = 16 / LANES;

// The four heads of a quad, each with its four channels.
INLINE void split_quad(const Vec* quad, Vec4* heads) {
#if LANES == 16
  const Vec t = __builtin_shufflevector(quad[0], quad[0], 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  heads[0] = (Vec4)_mm512_castps512_ps128((__m512)t);
  heads[1] = (Vec4)_mm512_extractf32x4_ps((__m512)t, 1);
  heads[2] = (Vec4)_mm512_extractf32x4_ps((__m512)t, 2);
  heads[3] = (Vec4)_mm512_extractf32x4_ps((__m512)t, 3);
#elif LANES == 8
  for (int i = 0; i < 2; i++) {
    heads[2 * i] = (Vec4)_mm256_castps256_ps128((__m256)quad[i]);
    heads[2 * i + 1] = (Vec4)_mm256_extractf128_ps((__m256)quad[i], 1);
  }
  transpose4(heads[0], heads[1], heads[2], heads[3]);
#else
  for (int i = 0; i < 4; i++) heads[i] = quad[i];
  transpose4(heads[0], heads[1], heads[2], heads[3]);
#endif
}

// 2 to the power x for x ≤ 0, with a relative error of 2e-7. NaN stays NaN; below 2^-126 the result is 0.
INLINE Vec exp2_nonpositive(Vec x) {
#if LANES == 16
  const Vec n = (Vec)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  // 1.5 · 2^23 + 127: adding it rounds to an integer, which the low bits then hold, with the bias of an exponent.
  const Vec shifter = splat(12583039.f);
  const Vec shifted = x + shifter, n = shifted - shifter;
#endif
  const Vec f = x - n;  // −0.5 … 0.5
  Vec p = splat(1.3333558e-3f);
  p = p * f + splat(9.6181291e-3f);
  p = p * f + splat(5.5504109e-2f);
  p = p * f + splat(2.4022651e-1f);
  p = p * f + splat(6.9314718e-1f);
  p = p * f + splat(1.0f);
#if LANES == 16
  const __mmask16 large = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-126.f), _CMP_NLT_UQ);  // or NaN
  return (Vec)_mm512_maskz_scalef_ps(large, (__m512)p, (__m512)n);
#else
  const Vec result = p * (Vec)((Ints)shifted << 23);
  return x < splat(-126.f) ? Vec{} : result;
#endif
}

}  // namespace
