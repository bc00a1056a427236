// Launches of the kernels of vmf_draw.cuh.
#include "vmf_draw.h"

#include "vmf_draw.cuh"

namespace {

template <typename T>
int draw(const T* mu, const T* kappa, const int64_t* seed, T* x, double* gap, double* sine, int64_t n, int64_t d,
         cudaStream_t stream) {
  gap_kernel<T><<<(n + GAP_THREADS - 1) / GAP_THREADS, GAP_THREADS, 0, stream>>>(kappa, seed, gap, sine, n, d);
  direction_kernel<T><<<(n + ROWS - 1) / ROWS, dim3(WARP, ROWS), 0, stream>>>(mu, seed, gap, sine, x, n, d);
  return cudaGetLastError();
}

}  // namespace

extern "C" int arlat_vmf_draw(const void* mu, const void* kappa, const int64_t* seed, void* x, double* gap,
                              double* sine, int64_t n, int64_t d, bool wide, int device, void* stream) {
  if (n == 0) return cudaSuccess;
  if (const int error = cudaSetDevice(device)) return error;
  const auto on = static_cast<cudaStream_t>(stream);
  return wide ? draw((const double*)mu, (const double*)kappa, seed, (double*)x, gap, sine, n, d, on)
              : draw((const float*)mu, (const float*)kappa, seed, (float*)x, gap, sine, n, d, on);
}

extern "C" int arlat_vmf_draw_backward(const void* grad, const void* mu, const void* kappa, const void* x,
                                       const double* gap, void* grad_mu, void* grad_kappa, int64_t n, int64_t d,
                                       int terms, bool wide, int device, void* stream) {
  if (n == 0) return cudaSuccess;
  if (const int error = cudaSetDevice(device)) return error;
  const auto on = static_cast<cudaStream_t>(stream);
  const dim3 grid((n + ROWS - 1) / ROWS), block(WARP, ROWS);
  if (wide)
    backward_kernel<double><<<grid, block, 0, on>>>((const double*)grad, (const double*)mu, (const double*)kappa,
                                                    (const double*)x, gap, (double*)grad_mu, (double*)grad_kappa, n, d,
                                                    terms);
  else
    backward_kernel<float><<<grid, block, 0, on>>>((const float*)grad, (const float*)mu, (const float*)kappa,
                                                   (const float*)x, gap, (float*)grad_mu, (float*)grad_kappa, n, d,
                                                   terms);
  return cudaGetLastError();
}

extern "C" const char* arlat_error_text(int error) { return cudaGetErrorString(cudaError_t(error)); }
