// What may be asked about the instruction sets and cells of this build, and the one thing that may be set.
// Declarations only: the choice is made in dispatch.cpp. Neither torch nor Python is known here.
#pragma once

#include <string>
#include <vector>

namespace birnn {

// Instruction sets that were compiled in and that this processor can run, the best first; never empty.
std::vector<std::string> isa_names();

// The instruction set in use: one of isa_names().
std::string isa_name();

// Uses `name` in the whole process, from the next layer on: a layer that is running keeps what it has.
// For tests. Throws std::invalid_argument, listing the choices, if `name` is not one of isa_names().
void set_isa(const std::string& name);

// For tests: exp, sigmoid or tanh of x as the kernels in use compute it, in "float32" or "float64".
std::vector<double> gate_function(const std::string& name, const std::string& dtype, const std::vector<double>& x);

// Gives back the memory that is kept for the next call (memory.h).
void release_free_memory();

// The cells that were compiled in, by the `mode` that asks for them ("GRU", "LSTM", ...).
std::vector<std::string> cell_names();

}  // namespace birnn
