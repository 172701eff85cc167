// Threads for one kernel call, taken from whoever calls: ONNX Runtime's pool, our own, or none.
//
// A call of many short phases (700 in a group of the speech head) cannot pay a thread's wake-up at each of them. So the
// pool is entered once a call: whoever arrives first leads, the others wait for phases by spinning and take chunks of
// them. A helper that never arrives, or late, costs speed and nothing else.
#pragma once

#include <atomic>
#include <cstdint>

namespace edge_sdk {

// Runs task(argument, i) for i in [0, count), side by side or one after the other; returns when all are done.
struct ThreadSource {
  void* context = nullptr;
  int threads = 1;
  void (*launch)(void* context, int count, void (*task)(void* argument, int index), void* argument) = nullptr;
};

class Team {
 public:
  explicit Team(int threads) : threads_(threads < 1 ? 1 : threads) {}
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int threads() const { return threads_; }

  // Has `leader` (a callable without arguments) run on one thread while the source's other threads help in its For.
  template <class Leader>
  static void Run(const ThreadSource& source, Leader&& leader);

  // body(chunk) for chunk in [0, chunks): the leader's call inside Run. Which thread takes a chunk is not determined,
  // so a result must not depend on it.
  template <class Body>
  void For(int chunks, const Body& body) {
    if (threads_ == 1 || chunks <= 1) {
      for (int i = 0; i < chunks; ++i) body(i);
      return;
    }
    Phase([](const void* argument, int chunk) { (*static_cast<const Body*>(argument))(chunk); }, &body, chunks);
  }

 private:
  using Function = void (*)(const void*, int);

  void Phase(Function function, const void* argument, int chunks);
  void Help();           // a helper's stay: until the leader is done
  int Claim();           // a chunk nobody else has, or -1
  void Finish() { done_.store(true, std::memory_order_release); }
  static void Launch(const ThreadSource& source, Team& team, void (*lead)(void*), void* argument);

  const int threads_;
  Function function_ = nullptr;
  const void* argument_ = nullptr;
  // The phase's number of chunks in the high half, the next free one in the low half. One word, so that a claim is of
  // the phase that is under way at that moment, however long a helper slept between its steps.
  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<int> finished_{0};
  alignas(64) std::atomic<bool> done_{false};
  std::atomic<bool> led_{false};
};

template <class Leader>
void Team::Run(const ThreadSource& source, Leader&& leader) {
  Team team(source.launch ? source.threads : 1);
  struct Bound {
    Leader& leader;
    Team& team;
  } bound{leader, team};
  Launch(
      source, team, [](void* argument) { auto* b = static_cast<Bound*>(argument); b->leader(b->team); }, &bound);
}

}  // namespace edge_sdk
