// Both directions at once: runs tasks side by side on the CPU. Not here: what a task does.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "../layer.h"

namespace birnn {

// How many tasks may run at once here: torch.get_num_threads(), or 1 inside another parallel region.
int64_t parallel_tasks();

// Calls body(0) ... body(count - 1), at the same time where `parallel` and the number of threads allow.
void run_tasks(int64_t count, bool parallel, const std::function<void(int64_t)>& body);

// One task per direction or, with more threads than directions, several with a share of the rows each. Tasks of direction d are
// [d * splits, (d + 1) * splits).
struct Plan {
  std::vector<int64_t> index;  // rows of the batch, longest first within each task
  std::vector<Task> tasks;
  int64_t splits;
};
Plan plan(const Sizes& n, const int64_t* lengths, int64_t threads);

}  // namespace birnn
