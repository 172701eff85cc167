#include "core/team.h"

#include <sched.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace edge_sdk {
namespace {

constexpr int kSpinsBeforeYield = 4096;  // a few tens of microseconds: longer than any phase's serial part
constexpr int kCountShift = 32;
constexpr uint64_t kChunkMask = 0xFFFFFFFFu;

void Relax(int* spins) {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
  if (*spins < kSpinsBeforeYield) {
    ++*spins;
  } else {
    sched_yield();  // whoever we wait for may need this core
  }
}

}  // namespace

void Team::Phase(Function function, const void* argument, int chunks) {
  function_ = function;
  argument_ = argument;
  finished_.store(0, std::memory_order_relaxed);
  ticket_.store(static_cast<uint64_t>(chunks) << kCountShift, std::memory_order_release);
  int mine = 0;
  for (int chunk; (chunk = Claim()) >= 0; ++mine) function(argument, chunk);
  finished_.fetch_add(mine, std::memory_order_acq_rel);
  for (int spins = 0; finished_.load(std::memory_order_acquire) != chunks;) Relax(&spins);
}

int Team::Claim() {
  uint64_t ticket = ticket_.load(std::memory_order_acquire);
  for (;;) {
    const uint64_t chunk = ticket & kChunkMask;
    if (chunk >= ticket >> kCountShift) return -1;
    if (ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
      return static_cast<int>(chunk);
    }
  }
}

void Team::Help() {
  for (int spins = 0; !done_.load(std::memory_order_acquire);) {
    const int chunk = Claim();
    if (chunk < 0) {
      Relax(&spins);
      continue;
    }
    spins = 0;
    // Holding a chunk keeps the leader in this phase: only then may function_ be read.
    function_(argument_, chunk);
    finished_.fetch_add(1, std::memory_order_acq_rel);
  }
}

void Team::Launch(const ThreadSource& source, Team& team, void (*lead)(void*), void* argument) {
  if (team.threads() == 1) {
    lead(argument);
    return;
  }
  struct Entry {
    Team* team;
    void (*lead)(void*);
    void* argument;
  } entry{&team, lead, argument};
  source.launch(
      source.context, team.threads(),
      [](void* raw, int) {
        auto* e = static_cast<Entry*>(raw);
        if (e->team->led_.exchange(true, std::memory_order_acq_rel)) {
          e->team->Help();
        } else {
          e->lead(e->argument);
          e->team->Finish();
        }
      },
      &entry);
}

}  // namespace edge_sdk
