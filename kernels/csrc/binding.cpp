// Registers the CUDA kernels with torch by its stable ABI: one library serves every torch from 2.10 on.
// It links libtorch_cpu alone, so that it loads where there is no CUDA; the stream therefore comes as a number.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "vmf_draw.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check(const Tensor& tensor, const char* name, const Tensor& mu, ScalarType type, int64_t numel) {
  STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == mu.get_device_index(), name,
                  " must be on the CUDA device of mu; move every tensor there, or call arlat_kernels.vmf_draw, which "
                  "runs anywhere.");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, " must be contiguous; pass .contiguous().");
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " has the wrong dtype; mu, kappa, x and gradients share float32 ",
                  "or float64, gap and sine are float64, seed is int64.");
  STD_TORCH_CHECK(tensor.numel() == numel, name, " has ", tensor.numel(), " entries; expected ", numel, ".");
}

bool check_mu(const Tensor& mu) {
  STD_TORCH_CHECK(mu.is_cuda(), "mu is not on a CUDA device, and these are CUDA kernels; move the tensors there, or ",
                  "call arlat_kernels.vmf_draw, which runs anywhere.");
  STD_TORCH_CHECK(mu.dim() == 2 && mu.sizes()[1] >= 2, "mu must be [n d] with d >= 2.");
  const bool wide = mu.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(wide || mu.scalar_type() == ScalarType::Float, "mu must be float32 or float64.");
  return wide;
}

void raise(int error) { STD_TORCH_CHECK(error == 0, "CUDA refuses the launch: ", arlat_error_text(error)); }

void vmf_draw(const Tensor& mu, const Tensor& kappa, const Tensor& seed, Tensor x, Tensor gap, Tensor sine,
              int64_t stream) {
  const bool wide = check_mu(mu);
  const ScalarType type = mu.scalar_type();
  const int64_t n = mu.sizes()[0], d = mu.sizes()[1];
  check(mu, "mu", mu, type, n * d);
  check(kappa, "kappa", mu, type, n);
  check(seed, "seed", mu, ScalarType::Long, 1);
  check(x, "x", mu, type, n * d);
  check(gap, "gap", mu, ScalarType::Double, n);
  check(sine, "sine", mu, ScalarType::Double, n);
  raise(arlat_vmf_draw(mu.data_ptr(), kappa.data_ptr(), static_cast<const int64_t*>(seed.data_ptr()), x.data_ptr(),
                       static_cast<double*>(gap.data_ptr()), static_cast<double*>(sine.data_ptr()), n, d, wide,
                       mu.get_device_index(), reinterpret_cast<void*>(stream)));
}

void vmf_draw_backward(const Tensor& grad, const Tensor& mu, const Tensor& kappa, const Tensor& x, const Tensor& gap,
                       Tensor grad_mu, Tensor grad_kappa, int64_t terms, int64_t stream) {
  const bool wide = check_mu(mu);
  const ScalarType type = mu.scalar_type();
  const int64_t n = mu.sizes()[0], d = mu.sizes()[1];
  check(grad, "grad", mu, type, n * d);
  check(mu, "mu", mu, type, n * d);
  check(kappa, "kappa", mu, type, n);
  check(x, "x", mu, type, n * d);
  check(gap, "gap", mu, ScalarType::Double, n);
  check(grad_mu, "grad_mu", mu, type, n * d);
  check(grad_kappa, "grad_kappa", mu, type, n);
  raise(arlat_vmf_draw_backward(grad.data_ptr(), mu.data_ptr(), kappa.data_ptr(), x.data_ptr(),
                                static_cast<const double*>(gap.data_ptr()), grad_mu.data_ptr(), grad_kappa.data_ptr(),
                                n, d, static_cast<int>(terms), wide, mu.get_device_index(),
                                reinterpret_cast<void*>(stream)));
}

}  // namespace

STABLE_TORCH_LIBRARY(arlat_cuda, m) {
  m.def("vmf_draw(Tensor mu, Tensor kappa, Tensor seed, Tensor(a!) x, Tensor(b!) gap, Tensor(c!) sine, int stream) -> ()");
  m.def(
      "vmf_draw_backward(Tensor grad, Tensor mu, Tensor kappa, Tensor x, Tensor gap, Tensor(a!) grad_mu, "
      "Tensor(b!) grad_kappa, int terms, int stream) -> ()");
}

// The same functions for CPU tensors: they refuse them with a sentence.
STABLE_TORCH_LIBRARY_IMPL(arlat_cuda, CPU, m) {
  m.impl("vmf_draw", TORCH_BOX(&vmf_draw));
  m.impl("vmf_draw_backward", TORCH_BOX(&vmf_draw_backward));
}

STABLE_TORCH_LIBRARY_IMPL(arlat_cuda, CUDA, m) {
  m.impl("vmf_draw", TORCH_BOX(&vmf_draw));
  m.impl("vmf_draw_backward", TORCH_BOX(&vmf_draw_backward));
}
