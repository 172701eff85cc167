// What a Team must survive: many short phases of changing size, helpers that come late, early, one by one or never.
#pragma once

namespace edge_sdk {

enum class Pool { kThreads, kOneByOne, kBackwards, kLate, kLeaderOnly };

// Runs `calls` Teams of `phases` phases each over such a pool; the number of chunks that did not run exactly once in
// their own phase.
int TeamStress(Pool pool, int threads, int calls, int phases);

}  // namespace edge_sdk
