// Exact draws from the von Mises–Fisher law and their gradients; formulas: arlat_kernels/vmf_sample.py and
// vmf_sample_gradient.py. One thread per row rejects proposals (a warp waits for its slowest row only), one warp per
// row makes the direction; in the backward pass one warp per row takes one node of the quadrature per lane.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "vmf_draw_constants.h"  // written by arlat_kernels.cuda_build: ROUNDS, COSINE, TANGENT, CLOSED, NODES, …

namespace {

#ifndef ARLAT_WARP
#define ARLAT_WARP 32  // the tests compile these kernels for the CPU, as warps of one thread
#endif
constexpr int WARP = ARLAT_WARP;
constexpr int GAP_THREADS = 128;
constexpr int ROWS = 8;  // rows, and warps, of one block of the kernels that take a warp per row

// Counter (row low, step, stream, row high), key (seed low, seed high): ten rounds.
__device__ uint4 random_words(uint64_t seed, int64_t row, uint32_t step, uint32_t stream) {
  uint32_t c0 = uint32_t(row), c1 = step, c2 = stream, c3 = uint32_t(row >> 32);
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
#pragma unroll
  for (int i = 0; i < 10; ++i) {
    const uint32_t high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
    const uint32_t high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
    c0 = high1 ^ c1 ^ k0, c1 = low1, c2 = high0 ^ c3 ^ k1, c3 = low0;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return make_uint4(c0, c1, c2, c3);
}

// −log of (word + ½)·2⁻³², with all digits at both ends.
template <typename T>
__device__ T minus_log(uint32_t word) {
  const bool low = word < 0x80000000u;
  const T small = (T(int32_t(low ? word : ~word)) + T(0.5)) * T(0x1p-32);
  return low ? -log(small) : -log1p(-small);
}

__device__ void sincos_pi(float x, float* sin, float* cos) { sincospif(x, sin, cos); }
__device__ void sincos_pi(double x, double* sin, double* cos) { sincospi(x, sin, cos); }

// cos and sin of 2π(word + ½)·2⁻³²; the reduction to an eighth of a turn is exact, in integers.
template <typename T>
__device__ void cos_sin(uint32_t word, T* cos, T* sin) {
  const uint32_t shifted = word + (1u << 29), quadrant = shifted >> 30;
  const T part = T(int32_t(shifted & 0x3FFFFFFFu) - (1 << 29)) + T(0.5);
  T c, s;
  sincos_pi(part * T(0x1p-31), &s, &c);
  const T first = quadrant & 1 ? s : c, second = quadrant & 1 ? c : s;
  *cos = quadrant == 1 || quadrant == 2 ? -first : first;
  *sin = quadrant >= 2 ? -second : second;
}

template <typename T>
__device__ T warp_sum(T value) {
#pragma unroll
  for (int step = WARP / 2; step; step /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, step);
  return value;
}

template <typename T>
__global__ void gap_kernel(const T* kappa_in, const int64_t* seed, double* gap, double* sine, int64_t n, int64_t d) {
  const int64_t row = int64_t(blockIdx.x) * GAP_THREADS + threadIdx.x;
  if (row >= n) return;
  const double kappa = kappa_in[row], order = double(d - 1);
  const double b = order / (2 * kappa + sqrt(4 * kappa * kappa + order * order));
  const double om = 2 * b / (1 + b), x0 = (1 - b) / (1 + b);  // om = 1 − x0
  double t = nan(""), s = nan("");
  for (int step = 0; step < ROUNDS; ++step) {
    const uint4 word = random_words(uint64_t(*seed), row, step, COSINE);
    const double z = d > 2 ? 2 * minus_log<double>(word.x) / double(d - 2) : double(INFINITY);
    const double rest = exp(-z), radius2 = -expm1(-z);
    double cos, sin;
    cos_sin(word.y, &cos, &sin);
    const double y = sqrt(radius2) * cos, s2 = rest + radius2 * sin * sin;
    const double omy = y > 0 ? s2 / (1 + y) : 1 - y, opy = y < 0 ? s2 / (1 - y) : 1 + y;
    const double q = om + x0 * opy, r = x0 * y;
    const double log_q = fabs(y) < 0.5 ? log1p(r) : log(q);
    if (order * (r / q - log_q) >= -minus_log<double>(word.z)) {
      t = om * omy / q;
      s = sqrt(om * (1 + x0) * s2) / q;
      break;
    }
  }
  gap[row] = t;
  sine[row] = s;
}

// |μ| of a row, by its warp.
template <typename T>
__device__ T length_of(const T* mu, int64_t d, int lane) {
  T square = 0;
  for (int64_t col = lane; col < d; col += WARP) square += mu[col] * mu[col];
  return sqrt(warp_sum(square));
}

// Entry `col` of μ/|μ|, or of the first axis where μ is zero.
template <typename T>
__device__ T pole_of(const T* mu, T length, int64_t col) {
  return length == 0 ? T(col == 0) : mu[col] / length;
}

template <typename T>
__global__ void direction_kernel(const T* mu_in, const int64_t* seed, const double* gap, const double* sine, T* x_out,
                                 int64_t n, int64_t d) {
  const int64_t row = int64_t(blockIdx.x) * ROWS + threadIdx.y;
  if (row >= n) return;
  const int lane = threadIdx.x;
  const T* mu = mu_in + row * d;
  T* x = x_out + row * d;  // holds the tangent until the last pass; a lane reads what it wrote itself
  const T length = length_of(mu, d, lane), along = T(1 - gap[row]), across = T(sine[row]);
  if (d == 2) {  // the tangent sphere is two points
    if (lane == 0) {
      const T m0 = pole_of(mu, length, 0), m1 = pole_of(mu, length, 1);
      const T side = random_words(uint64_t(*seed), row, 0, TANGENT).x >> 31 ? -across : across;
      x[0] = along * m0 - side * m1;
      x[1] = along * m1 + side * m0;
    }
    return;
  }
  T dot = 0;
  for (int64_t quad = lane; 4 * quad < d; quad += WARP) {
    const uint4 word = random_words(uint64_t(*seed), row, uint32_t(quad), TANGENT);
    T g[4];
    cos_sin(word.y, &g[0], &g[1]);
    cos_sin(word.w, &g[2], &g[3]);
    const T first = sqrt(2 * minus_log<T>(word.x)), second = sqrt(2 * minus_log<T>(word.z));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t col = 4 * quad + i;
      if (col < d) {
        x[col] = g[i] * (i < 2 ? first : second);
        dot += x[col] * pole_of(mu, length, col);
      }
    }
  }
  T square = 0;
  for (int pass = 0; pass < 2; ++pass) {  // once leaves a rounding error along the pole that few dimensions would feel
    const T share = warp_sum(dot);
    dot = 0, square = 0;
    for (int64_t quad = lane; 4 * quad < d; quad += WARP) {
      for (int64_t col = 4 * quad; col < d && col < 4 * quad + 4; ++col) {
        const T m = pole_of(mu, length, col), v = x[col] - share * m;
        x[col] = v;
        dot += v * m;
        square += v * v;
      }
    }
  }
  const T scale = across / sqrt(warp_sum(square));
  for (int64_t quad = lane; 4 * quad < d; quad += WARP)
    for (int64_t col = 4 * quad; col < d && col < 4 * quad + 4; ++col)
      x[col] = along * pole_of(mu, length, col) + scale * x[col];
}

// One node of the integral h over [0, reach] for d = 2, before the common factors.
__device__ double node_circle(double gap, double kappa, double rest, double reach, double node) {
  const bool up = gap < rest;
  const double own = up ? gap : 2 - gap, fall = reach * node * (2 - reach * node);
  const double side = up ? gap * (1 - fall) : gap + own * fall;
  return (rest - side) * exp((up ? kappa : -kappa) * own * fall) / sqrt((1 - own / 2 + own / 2 * fall) * (1 - own / 2));
}

// Likewise for d ≥ 3.
__device__ double node_sphere(double gap, double kappa, double rest, double order, double reach, double node) {
  const bool up = gap < rest;
  const double a = (up ? gap : 2 - gap) / 2, b = (up ? 2 - gap : gap) / 2;
  const double distance = reach * node, e = exp(-2 * distance), m = 1 - e, ratio = e + b * m;
  const double side = 2 * (up ? a * e : b) / ratio;
  return (rest - side) * exp((up ? kappa : -kappa) * (2 * a * b * m / ratio) - order * (distance + log(ratio)));
}

__device__ double reach_circle(double gap, double kappa, double rest) {
  const double tail = fmin(36 / (kappa * (2 - gap)), 1.0);
  return gap < rest ? 1 : tail / (1 + sqrt(1 - tail));
}

__device__ double reach_sphere(double gap, double kappa, double rest, double order) {
  const double twice = gap * (2 - gap), q = kappa * twice / 2;
  const double reach = fmin(16 / fabs(order * (1 - gap) - kappa * twice), 16 / order + sqrt(32 / order));
  const double narrow = fmin(sqrt(8 / q), fmax(0.63, 0.5 * log1p(32 / q)));
  return gap >= rest && kappa * (2 - gap) > 32 ? fmin(reach, narrow) : reach;
}

// h for d = 3, where the law of the cosine is elementary; at κ from CLOSED on nothing cancels.
__device__ double slope_closed(double gap, double kappa) {
  const double share = expm1(-kappa * gap) / expm1(-2 * kappa);
  return (gap - 2 * exp(-kappa * (2 - gap)) * share) / (kappa * gap * (2 - gap));
}

// h = (dw/dκ)/(1 − w²) of a row, by its warp: a lane takes a node.
__device__ double slope_of(double gap, double kappa, int64_t d, int terms, int lane) {
  if (d == 3 && kappa >= CLOSED) return slope_closed(gap, kappa);
  double f = 0;  // Perron's continued fraction for 1 − A
  for (int k = terms; k > 0; --k) f = -(double(d - 1) + 2 * k) * kappa / (2 * kappa + (double(d) + k) + f);
  const double rest = (double(d) + f) / (kappa + (double(d) + f)), order = double(d - 1);
  const double reach = d == 2 ? reach_circle(gap, kappa, rest) : reach_sphere(gap, kappa, rest, order);
  double value = 0;
  for (int j = lane; j < NODES; j += WARP)
    value += WEIGHT[j] * (d == 2 ? node_circle(gap, kappa, rest, reach, NODE[j])
                                 : node_sphere(gap, kappa, rest, order, reach, NODE[j]));
  return (gap < rest ? reach : -reach) * warp_sum(value);
}

template <typename T>
__global__ void backward_kernel(const T* grad_in, const T* mu_in, const T* kappa, const T* x_in, const double* gap,
                                T* grad_mu, T* grad_kappa, int64_t n, int64_t d, int terms) {
  const int64_t row = int64_t(blockIdx.x) * ROWS + threadIdx.y;
  if (row >= n) return;
  const int lane = threadIdx.x;
  const T *grad = grad_in + row * d, *mu = mu_in + row * d, *x = x_in + row * d;
  const T length = length_of(mu, d, lane), t = T(gap[row]);
  T along = 0, pull = 0;
  for (int64_t col = lane; col < d; col += WARP) {
    const T m = pole_of(mu, length, col);
    along += grad[col] * m;
    pull += grad[col] * (m - x[col] + t * x[col]);  // m − x first: m·g and w x·g agree to many digits at large κ
  }
  along = warp_sum(along), pull = warp_sum(pull);
  const T inverse = length == 0 ? T(0) : 1 / length;
  for (int64_t col = lane; col < d; col += WARP)
    grad_mu[row * d + col] = ((1 - t) * grad[col] - along * x[col]) * inverse;
  const double h = slope_of(gap[row], double(kappa[row]), d, terms, lane);
  if (lane == 0) grad_kappa[row] = T(h) * pull;
}

}  // namespace
