// exp, sigmoid and tanh on vectors. Errors against a 200-bit reference are held by tests/test_cells.py: float within 1.2e-7
// absolute and double within 4e-16 of the true gate value, which is what a gate needs (its value is at most 1).
// Not here: functions that set errno or care about rounding modes. NaN in, NaN out.
#pragma once

#include "simd.h"

namespace birnn {
namespace BIRNN_NS {

template <class V>
struct Math;

// exp(x) for |x| below the range of the type: x = n ln 2 + r, 2^n by its exponent bits, exp(r) by its Taylor series in r
// (|r| <= ln 2 / 2: the term of degree 7 is below half an ulp in float, of degree 13 in double).
template <>
struct Math<Vec<float>> {
  typedef Vec<float> V;

  BIRNN_INLINE V zero() { return V{}; }
  BIRNN_INLINE V relu(V x) { return x < 0 ? V{} : x; }
  BIRNN_INLINE V relu_backward(V y, V dy) { return y <= 0 ? V{} : dy; }  // NaN passes, as in torch
  BIRNN_INLINE V clamp(V x, float limit) {
    x = x > limit ? splat(limit) : x;
    return x < -limit ? splat(-limit) : x;
  }

  // exp(x) = power * (1 + tail)
  BIRNN_INLINE void reduce(V x, V& power, V& tail) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer that stands in the low bits
    const V shifted = x * 1.44269504f + magic;
    const V n = shifted - magic;
    const V r = (x - n * 0.693359375f) - n * -2.12194440e-4f;  // ln 2 in two parts (Cody and Waite)
    V p = splat(1.9875691500e-4f);                             // coefficients: Cephes, expf.c
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    tail = p * (r * r) + r;
    const auto bits = reinterpret_cast<Simd<float>::Int>(shifted);
    power = reinterpret_cast<V>((bits << 23) + (127 << 23));
  }

  BIRNN_INLINE V exp(V x) {
    V power, tail;
    reduce(x, power, tail);
    return (tail + 1.0f) * power;  // a product: a NaN in tail stays one, whatever its bits
  }

  BIRNN_INLINE V sigmoid(V x) { return 1.0f / (1.0f + exp(-clamp(x, 80.0f))); }

  // t / (t + 2) with t = exp(2|x|) - 1, which does not cancel near zero; with the sign of x. Within 2 ulp. (A rational
  // function of degree 13 / 6 takes as long, but saturates at 1 - 2.4e-7, and in a gradient, 1 - tanh^2, that adds up.)
  BIRNN_INLINE V tanh(V x) {
    typedef typename Simd<float>::Int Int;
    const Int sign = reinterpret_cast<Int>(x) & INT32_MIN;
    V a = reinterpret_cast<V>(reinterpret_cast<Int>(x) ^ sign);
    a = a > 10.0f ? splat(10.0f) : a;
    V power, tail;
    reduce(a + a, power, tail);
    const V t = tail * power + (power - 1.0f);
    return reinterpret_cast<V>(reinterpret_cast<Int>(t / (t + 2.0f)) | sign);
  }
};

template <>
struct Math<Vec<double>> {
  typedef Vec<double> V;

  BIRNN_INLINE V zero() { return V{}; }
  BIRNN_INLINE V relu(V x) { return x < 0 ? V{} : x; }
  BIRNN_INLINE V relu_backward(V y, V dy) { return y <= 0 ? V{} : dy; }  // NaN passes, as in torch
  BIRNN_INLINE V clamp(V x, double limit) {
    x = x > limit ? splat(limit) : x;
    return x < -limit ? splat(-limit) : x;
  }

  BIRNN_INLINE V exp(V x) {
    const double magic = 6755399441055744.0;  // 1.5 * 2^52
    const V shifted = x * 1.4426950408889634 + magic;
    const V n = shifted - magic;
    const V r = (x - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6;
    V p = splat(1.0 / 6227020800);
    p = p * r + 1.0 / 479001600;
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * (r * r) + r + 1.0;
    const auto bits = reinterpret_cast<Simd<double>::Int>(shifted);
    return p * reinterpret_cast<V>((bits << 52) + (int64_t(1023) << 52));
  }

  BIRNN_INLINE V sigmoid(V x) { return 1.0 / (1.0 + exp(-clamp(x, 700.0))); }

  // Cephes, tanh.c: a rational function near zero, where 1 - 2 / (exp(2x) + 1) would cancel.
  BIRNN_INLINE V tanh(V x) {
    const V z = x * x;
    V p = splat(-9.64399179425052238628e-1);
    p = p * z + -9.92877231001918586564e1;
    p = p * z + -1.61468768441708447952e3;
    V q = z + 1.12811678491632931402e2;
    q = q * z + 2.23548839060100448583e3;
    q = q * z + 4.84406305325125486048e3;
    const V near = z == 0 ? x : x + x * z * p / q;  // (keeps the sign of -0)
    const V far = 1.0 - 2.0 / (exp(2.0 * clamp(x, 22.0)) + 1.0);
    return z < 0.625 * 0.625 ? near : far;
  }
};

}  // namespace BIRNN_NS
}  // namespace birnn
