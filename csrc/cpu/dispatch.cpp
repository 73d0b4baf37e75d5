// Chooses the instruction set: the best that was compiled in and that the processor has, unless BIRNN_ISA names
// another. ATEN_CPU_CAPABILITY, by which people hold torch itself to an older instruction set, holds these kernels too.
#include "dispatch.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "../cells/facts.h"
#include "table.h"

namespace birnn {

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
namespace avx512_bf16 {
extern const Kernels<bfloat16> kernels;
}
namespace avx512 {
extern const Table kernels;
}
namespace avx2 {
extern const Table kernels;
}
#endif
namespace base {
extern const Table kernels;
}

namespace {

// Usable here, the best first.
std::vector<const Table*> usable() {
  std::vector<const Table*> tables;
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  __builtin_cpu_init();
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#if __GNUC__ >= 11  // older ones do not know this name, nor AVX512_BF16; all processors with AVX2 have it
  avx2 = avx2 && __builtin_cpu_supports("f16c");
#endif
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
#if __GNUC__ >= 11
    if (__builtin_cpu_supports("avx512bf16")) {
      static const Table with_dots = [] {
        Table t = avx512::kernels;
        t.name = "avx512_bf16", t.bf16 = avx512_bf16::kernels;
        return t;
      }();
      tables.push_back(&with_dots);
    }
#endif
    tables.push_back(&avx512::kernels);
  }
  if (avx2) tables.push_back(&avx2::kernels);
#endif
  tables.push_back(&base::kernels);
  return tables;
}

const Table& find(const std::string& name, const char* argument) {
  std::string choices;
  for (const Table* t : usable()) {
    if (name == t->name) return *t;
    choices += (choices.empty() ? "" : ", ") + std::string(t->name);
  }
  throw std::invalid_argument(std::string(argument) + ": expected one of " + choices + " (what this processor can run), got '" +
                              name + "'");
}

const Table& choose() {
  const char* own = std::getenv("BIRNN_ISA");
  if (own && *own) return find(own, "BIRNN_ISA");
  const char* torchs = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string cap = torchs ? torchs : "";
  for (const Table* t : usable()) {
    const std::string name = t->name;
    if (cap == "default" && name != "base") continue;
    if (cap == "avx2" && name.rfind("avx512", 0) == 0) continue;
    return *t;
  }
  return base::kernels;
}

std::atomic<const Table*> chosen{nullptr};

}  // namespace

const Table& table() {
  const Table* t = chosen.load(std::memory_order_acquire);
  if (!t) {
    t = &choose();
    chosen.store(t, std::memory_order_release);
  }
  return *t;
}

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const Table* t : usable()) names.push_back(t->name);
  return names;
}

std::string isa_name() { return table().name; }

void set_isa(const std::string& name) { chosen.store(&find(name, "name"), std::memory_order_release); }

namespace {

template <class T>
std::vector<double> call(MathHook<T> hook, int function, const std::vector<double>& x) {
  std::vector<T> in(x.begin(), x.end()), out(x.size());
  hook(function, int64_t(x.size()), in.data(), out.data());
  return {out.begin(), out.end()};
}

}  // namespace

std::vector<double> gate_function(const std::string& name, const std::string& dtype, const std::vector<double>& x) {
  const std::vector<std::string> names{"exp", "sigmoid", "tanh"};
  const int function = int(std::find(names.begin(), names.end(), name) - names.begin());
  if (function == int(names.size())) {
    throw std::invalid_argument("name: expected exp, sigmoid or tanh, got '" + name + "'");
  }
  if (dtype == "float32") return call(table().math_f32, function, x);
  if (dtype == "float64") return call(table().math_f64, function, x);
  throw std::invalid_argument("dtype: expected float32 or float64, got '" + dtype + "'");
}

std::vector<std::string> cell_names() {
  std::vector<std::string> names;
  for (const CellFacts& cell : cell_facts) names.push_back(cell.name);
  return names;
}

int64_t l2_cache_bytes() {
  static const int64_t bytes = [] {
#if defined(_SC_LEVEL2_CACHE_SIZE)
    const long found = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (found >= 128 * 1024) return int64_t(found);
#endif
    return int64_t(512 * 1024);  // not told (some virtual machines, aarch64): a common size
  }();
  return bytes;
}

}  // namespace birnn
