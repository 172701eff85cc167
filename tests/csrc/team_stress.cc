#include "team_stress.h"

#include <chrono>
#include <thread>
#include <vector>

#include "core/team.h"
#include "core/thread_pool.h"

namespace edge_sdk {
namespace {

using Task = void (*)(void*, int);

void OneByOne(void*, int count, Task task, void* argument) {
  for (int i = 0; i < count; ++i) task(argument, i);
}

void Backwards(void*, int count, Task task, void* argument) {
  for (int i = count - 1; i >= 0; --i) task(argument, i);
}

void LeaderOnly(void*, int, Task task, void* argument) { task(argument, 0); }

// Helpers arrive while the leader is somewhere in the middle, or long done.
void Late(void*, int count, Task task, void* argument) {
  std::vector<std::thread> threads;
  for (int i = 1; i < count; ++i) {
    threads.emplace_back([=] {
      std::this_thread::sleep_for(std::chrono::microseconds(150 * i));
      task(argument, i);
    });
  }
  task(argument, 0);
  for (std::thread& thread : threads) thread.join();
}

ThreadSource Source(Pool pool, ThreadPool* own, int threads) {
  if (pool == Pool::kThreads) return own->source();
  ThreadSource source;
  source.threads = threads;
  source.launch = pool == Pool::kOneByOne    ? OneByOne
                  : pool == Pool::kBackwards ? Backwards
                  : pool == Pool::kLate      ? Late
                                             : LeaderOnly;
  return source;
}

// Plain integers on purpose: two threads at one chunk, or one after its phase ended, are a race that TSan reports.
int RunPhases(Team& team, int phases) {
  constexpr int kSizes[] = {2, 1, 7, 3, 64, 2, 5, 0, 31};
  std::vector<int> ran;
  int wrong = 0;
  for (int phase = 0; phase < phases; ++phase) {
    const int chunks = kSizes[phase % 9];
    ran.assign(chunks, 0);
    team.For(chunks, [&](int chunk) {
      if (chunk < chunks) ran[chunk] += 1;
      if (chunk >= chunks) wrong = phases;
    });
    for (const int count : ran) wrong += count != 1;
  }
  return wrong;
}

}  // namespace

int TeamStress(Pool pool, int threads, int calls, int phases) {
  ThreadPool own(pool == Pool::kThreads ? threads : 1);
  int wrong = 0;
  for (int call = 0; call < calls; ++call) {
    Team::Run(Source(pool, &own, threads), [&](Team& team) { wrong += RunPhases(team, phases); });
  }
  return wrong;
}

}  // namespace edge_sdk
