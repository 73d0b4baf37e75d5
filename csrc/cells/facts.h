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
  int gates, states, saved;
};

#define BIRNN_FACTS(cell, mode) {facts::cell::name, facts::cell::gates, facts::cell::states, facts::cell::saved},
constexpr CellFacts cell_facts[MODE_COUNT] = {BIRNN_FOR_EACH_CELL(BIRNN_FACTS)};
#undef BIRNN_FACTS

}  // namespace birnn
