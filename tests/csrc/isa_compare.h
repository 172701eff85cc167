// The functions of one instruction set's table against plain C++, over awkward sizes and values.
#pragma once

#include "kernels/isa.h"

namespace edge_sdk {

// Prints what differs; how many comparisons failed. `bound`: relative difference of sums in another order.
int CompareIsa(const Isa& isa, double bound);

}  // namespace edge_sdk
