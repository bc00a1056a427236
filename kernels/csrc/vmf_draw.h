// Launches of the vMF draw, in plain C: the binding knows torch and not CUDA, the kernels CUDA and not torch.
#pragma once
#include <cstdint>

// Every pointer is device memory, dense; mu [n d], kappa [n], x [n d], gap and sine [n] in double, seed [1].
// `wide` says that mu, kappa, x and the gradients are double, not float. The result is a cudaError_t.
extern "C" int arlat_vmf_draw(const void* mu, const void* kappa, const int64_t* seed, void* x, double* gap,
                              double* sine, int64_t n, int64_t d, bool wide, int device, void* stream);
extern "C" int arlat_vmf_draw_backward(const void* grad, const void* mu, const void* kappa, const void* x,
                                       const double* gap, void* grad_mu, void* grad_kappa, int64_t n, int64_t d,
                                       int terms, bool wide, int device, void* stream);
extern "C" const char* arlat_error_text(int error);
