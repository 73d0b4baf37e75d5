// Runs a layer that was compiled ahead of time, without Python code: docs/pytorch.md says how the package is made.
//
//     aoti_main model.pt2 birnn_ext/_C.*.so T B out
//
// feeds the model a padded batch [T, B, 3] of sin(0), sin(1), ... with lengths 0, 1, 2, ... (mod T + 1), and writes the
// float32 values of all results into `out`, one behind the other. The second argument is the library that holds the
// op; loading it registers the op. It also holds the Python module `_C`, so that libpython must be linked or loaded.
#include <ATen/ATen.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>

int main(int argc, char** argv) {
  if (argc != 6) {
    std::fprintf(stderr, "usage: %s model.pt2 library T B out\n", argv[0]);
    return 2;
  }
  if (!dlopen(argv[2], RTLD_NOW | RTLD_GLOBAL)) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  const int64_t T = std::atoll(argv[3]), B = std::atoll(argv[4]);
  const at::Tensor x = at::arange(T * B * 3, at::kFloat).sin().reshape({T, B, 3});
  const at::Tensor lengths = at::arange(B, at::kLong).remainder(T + 1);
  torch::inductor::AOTIModelPackageLoader model(argv[1]);
  std::ofstream out(argv[5], std::ios::binary);
  for (const at::Tensor& result : model.run({x, lengths})) {
    const at::Tensor dense = result.contiguous();
    out.write(reinterpret_cast<const char*>(dense.const_data_ptr<float>()), std::streamsize(dense.nbytes()));
  }
  return out.good() ? 0 : 1;
}
