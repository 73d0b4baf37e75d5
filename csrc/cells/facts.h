// What host code may know of the cells without instantiating their equations.
#pragma once

#include "../layer.h"

#define BIRNN_NS facts
namespace birnn {
namespace facts {
template <class V>
struct Math;  // the equations are templates, and none is instantiated here
}
}  // namespace birnn
#include "cells.h"
#undef BIRNN_NS

namespace birnn {

struct CellFacts {
  const char* name;
  int gates, states, saved, columns;
};

#define BIRNN_FACTS(cell, mode) \
  {facts::cell::name, facts::cell::gates, facts::cell::states, facts::cell::saved, facts::cell::columns},
constexpr CellFacts cell_facts[MODE_COUNT] = {BIRNN_FOR_EACH_CELL(BIRNN_FACTS)};
#undef BIRNN_FACTS

#define BIRNN_MODE(cell, mode) mode,
constexpr Mode listed[] = {BIRNN_FOR_EACH_CELL(BIRNN_MODE)};
#undef BIRNN_MODE
constexpr bool in_order() {
  for (int m = 0; m < MODE_COUNT; ++m) {
    if (listed[m] != m) return false;
  }
  return sizeof(listed) / sizeof(Mode) == MODE_COUNT;
}
static_assert(in_order(), "BIRNN_FOR_EACH_CELL and enum Mode must name the same cells in the same order");

}  // namespace birnn
