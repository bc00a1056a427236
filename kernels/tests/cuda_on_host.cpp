// Runs the kernels of vmf_draw.cuh on the CPU, row after row, as warps of one thread: their arithmetic without a GPU.
#include <cmath>
#include <cstdint>

struct uint4 { uint32_t x, y, z, w; };
struct Index { uint32_t x, y; };
static Index blockIdx, threadIdx;
static uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
static uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t((uint64_t(a) * b) >> 32); }
template <typename T>
static T __shfl_xor_sync(uint32_t, T, int) {
  return 0;
}
static void sincospif(float x, float* s, float* c) { *s = std::sin(float(M_PI) * x), *c = std::cos(float(M_PI) * x); }
static void sincospi(double x, double* s, double* c) { *s = std::sin(M_PI * x), *c = std::cos(M_PI * x); }
using std::exp, std::expm1, std::fabs, std::fmax, std::fmin, std::log, std::log1p, std::sqrt;
#define __device__ static
#define __constant__ static const
#define __global__ static
#define ARLAT_WARP 1
#include "vmf_draw.cuh"

extern "C" void draw(const double* mu, const double* kappa, const int64_t* seed, double* x, double* gap, double* sine,
                     int64_t n, int64_t d) {
  for (int64_t row = 0; row < n; ++row) {
    blockIdx.x = uint32_t(row / GAP_THREADS), threadIdx = {uint32_t(row % GAP_THREADS), 0};
    gap_kernel(kappa, seed, gap, sine, n, d);
    blockIdx.x = uint32_t(row / ROWS), threadIdx = {0, uint32_t(row % ROWS)};
    direction_kernel(mu, seed, gap, sine, x, n, d);
  }
}

extern "C" void draw_float(const float* mu, const float* kappa, const int64_t* seed, float* x, double* gap,
                           double* sine, int64_t n, int64_t d) {
  for (int64_t row = 0; row < n; ++row) {
    blockIdx.x = uint32_t(row / GAP_THREADS), threadIdx = {uint32_t(row % GAP_THREADS), 0};
    gap_kernel(kappa, seed, gap, sine, n, d);
    blockIdx.x = uint32_t(row / ROWS), threadIdx = {0, uint32_t(row % ROWS)};
    direction_kernel(mu, seed, gap, sine, x, n, d);
  }
}

extern "C" void backward(const double* grad, const double* mu, const double* kappa, const double* x, const double* gap,
                         double* grad_mu, double* grad_kappa, int64_t n, int64_t d, int terms) {
  for (int64_t row = 0; row < n; ++row) {
    blockIdx.x = uint32_t(row / ROWS), threadIdx = {0, uint32_t(row % ROWS)};
    backward_kernel(grad, mu, kappa, x, gap, grad_mu, grad_kappa, n, d, terms);
  }
}
