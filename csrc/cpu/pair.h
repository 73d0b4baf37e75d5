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

// One task per direction or, with more threads than directions, several with a share of the rows each, and a team of threads
// for each where the rows are few. Tasks of direction d are [d * splits, (d + 1) * splits), with at least `rows_of_a_task` rows
// where there are that many. `element`: bytes of a number.
struct Plan {
  std::vector<int64_t> index;     // rows of the batch, longest first within each task
  std::vector<Episode> episodes;  // [index.size()], or empty: rows are whole
  std::vector<Task> tasks;
  int64_t splits;
  int members;  // threads per task
  bool turns;   // the directions one after the other, each with all threads (one task per direction then)
};
Plan plan(const Sizes& n, int gates, const int64_t* lengths, int64_t threads, int64_t rows_of_a_task = 1, int64_t element = 4);

// The same for the episodes in numbers [B, T] (see ops.h), each in place of a row; so they go through time side by side.
Plan plan_episodes(Sizes n, int gates, const int64_t* numbers, int64_t threads, int64_t rows_of_a_task = 1,
                   int64_t element = 4);

// Whether a layer is large enough for more than one thread.
bool worth_threads(const Sizes& n, int gates);

// Calls body(task, team) once for every member of the team of every task, all at the same time where they wait for each other.
// Where the system does not give that many threads, each task is done by a team of one. With `meet`, task k and task
// k + tasks / 2 take the same rows in both directions: their teams get a Crossing, or are run in this order.
void run_teams(int64_t tasks, int members, bool parallel, bool meet, const std::function<void(int64_t, const Team&)>& body);

}  // namespace birnn
