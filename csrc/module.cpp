// The Python module birnn_ext._C: facts about the build, and hooks with which tests force an instruction set.
// Not the layers themselves: they are dispatcher ops, which ops.cpp registers when this library is loaded.
// No torch header, so that this file compiles in seconds.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <vector>

#include "cells/facts.h"
#include "cpu/dispatch.h"
#include "cpu/pair.h"
#include "cpu/table.h"

// setup.py passes these three; pyproject.toml holds the version number.
#if !defined(BIRNN_VERSION) || !defined(BIRNN_TORCH_VERSION) || !defined(BIRNN_CUDA_ARCHS)
#error "build through setup.py, which defines BIRNN_VERSION, BIRNN_TORCH_VERSION and BIRNN_CUDA_ARCHS"
#endif

namespace {

#if defined(__clang__)
constexpr const char* compiler = "Clang " __clang_version__;
#else
constexpr const char* compiler = "GCC " __VERSION__;
#endif

// "8.0 9.0+PTX" -> {"8.0", "9.0+PTX"}; nothing for a build without CUDA.
std::vector<std::string> words(const std::string& text) {
  std::istringstream in(text);
  std::vector<std::string> result;
  for (std::string word; in >> word;) result.push_back(word);
  return result;
}

// Who does what in a forward pass on the CPU.
std::tuple<int64_t, int, bool> plan_of(const std::string& mode, int64_t T, int64_t B, int64_t I, int64_t H, int64_t P,
                                       int64_t D, int64_t threads) {
  for (const birnn::CellFacts& cell : birnn::cell_facts) {
    if (mode != cell.name) continue;
    const birnn::Sizes n{T, B, I, H, P, D, P != H};
    const birnn::Plan p = birnn::plan(n, cell.gates, nullptr, birnn::worth_threads(n, cell.gates) ? threads : 1);
    return {p.splits, p.members, p.turns};
  }
  throw std::invalid_argument("mode: expected the name of a cell, got '" + mode + "'");
}

// Bytes of the scratch memory of all tasks of a pass over episodes, float32.
int64_t scratch_of(const std::string& mode, const std::vector<std::vector<int64_t>>& numbers, int64_t I, int64_t H, int64_t P,
                   int64_t D, int64_t threads, bool backward) {
  std::vector<int64_t> all;
  for (const std::vector<int64_t>& row : numbers) all.insert(all.end(), row.begin(), row.end());
  const int64_t B = int64_t(numbers.size()), l2 = birnn::l2_cache_bytes();
  birnn::Backward<float> q = {};
  q.f.n = {B ? int64_t(all.size()) / B : 0, B, I, H, P, D, P != H};
  for (int m = 0; m < birnn::MODE_COUNT; ++m) {
    if (mode != birnn::cell_facts[m].name) continue;
    const birnn::Plan p = birnn::plan_episodes(q.f.n, birnn::cell_facts[m].gates, all.data(), threads, backward ? 4 : 1);
    const birnn::Kernels<float>& kernels = birnn::table().f32;
    int64_t sum = 0;
    for (const birnn::Task& task : p.tasks) {
      sum += backward ? kernels.backward[m].scratch_size(q, task, {0, p.members}, l2)
                      : kernels.forward[m].scratch_size(q.f, task, l2);
    }
    return sum * int64_t(sizeof(float));
  }
  throw std::invalid_argument("mode: expected the name of a cell, got '" + mode + "'");
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts of birnn_ext and test hooks; loading it registers torch.ops.birnn_ext.";
  m.attr("version") = BIRNN_VERSION;
  m.attr("torch_version") = BIRNN_TORCH_VERSION;
  m.attr("cuda_archs") = words(BIRNN_CUDA_ARCHS);
  m.attr("compiler") = compiler;
  m.def("cells", &birnn::cell_names, "Names of the cells compiled in.");
  m.def("gate_function", &birnn::gate_function, pybind11::arg("name"), pybind11::arg("dtype"), pybind11::arg("x"),
        "For tests: \"exp\", \"sigmoid\" or \"tanh\" of a list of numbers, as the kernels in use compute it in "
        "\"float32\" or "
        "\"float64\". ValueError for other names.");
  m.def("release_memory", &birnn::release_free_memory,
        "Gives back the memory (256 MiB at most) that is kept for the next call.");
  m.def("isa_list", &birnn::isa_names, "Instruction sets usable on this machine, the best first.");
  m.def("plan", &plan_of, pybind11::arg("mode"), pybind11::arg("T"), pybind11::arg("B"), pybind11::arg("I"), pybind11::arg("H"),
        pybind11::arg("P"), pybind11::arg("D"), pybind11::arg("threads"),
        "(shares of the rows per direction, threads per share, whether the directions take turns) of a forward pass in float32 "
        "with "
        "so many threads.");
  m.def("scratch", &scratch_of, pybind11::arg("mode"), pybind11::arg("numbers"), pybind11::arg("I"), pybind11::arg("H"),
        pybind11::arg("P"), pybind11::arg("D"), pybind11::arg("threads"), pybind11::arg("backward"),
        "Bytes of scratch memory of a pass in float32 over the episodes in `numbers` [B][T] (see csrc/ops.h) with so many "
        "threads.");
  m.def("isa", &birnn::isa_name, "The instruction set in use.");
  m.def(
      "multiplies_bfloat16", [] { return birnn::table().multiplies_bfloat16(); }, "Whether that multiplies bfloat16 as it is.");
  // pybind11 turns std::invalid_argument into ValueError.
  m.def("set_isa", &birnn::set_isa, pybind11::arg("name"),
        "For tests: use this instruction set from now on. ValueError, with the choices, if it is not usable.");
}
