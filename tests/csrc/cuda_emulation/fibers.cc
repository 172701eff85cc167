// The emulation's threads: each a fiber with its own stack, run in turn until it waits for others.
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <map>
#include <memory>
#include <random>

#include "cuda_runtime.h"

namespace emulation {

namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kSharedGuardBytes = 256;
constexpr unsigned char kSharedFill = 0xff;  // a NaN as float
constexpr int kWarp = 32;
constexpr int kMaxIdleRounds = 10000;

// Where threads wait for each other.
struct Barrier {
  int arrived = 0;
  Place first{};
};

struct WarpState {
  Barrier barrier;
  uint64_t words[2][kWarp];
};

struct BlockState {
  Barrier barrier;
  std::vector<unsigned char> memory;  // the block's shared memory with what aligns it, and a guard
  size_t shared_bytes = 0;
  unsigned char* shared() { return memory.data() + (-reinterpret_cast<uintptr_t>(memory.data()) & 15u); }
  int threads = 0;
  int live = 0;
};

enum class State { kReady, kWaiting, kPaused, kDone };

struct Fiber {
  dim3 thread, block_index;
  int lane = 0;
  BlockState* block = nullptr;
  WarpState* warp = nullptr;
  Barrier* waits_at = nullptr;
  Place place{};
  State state = State::kReady;
  bool started = false;
  unsigned exchanges = 0;
  jmp_buf registers;
  ucontext_t context;
};

Fiber* self = nullptr;  // the running thread
std::vector<Fiber*> running;  // all of this launch, in the order they take turns
jmp_buf scheduler;
const std::function<void()>* body = nullptr;
std::string error;
unsigned order = 0;
int processors = 3;
std::map<const void*, int> allowed_shared;

std::string Words(Place p) { return std::string(p.file) + ":" + std::to_string(p.line); }

std::string Words(const Fiber& f) {
  return "thread " + std::to_string(f.thread.x) + " of block (" + std::to_string(f.block_index.x) + ", " +
         std::to_string(f.block_index.y) + ")";
}

void Fail(const std::string& message) {
  if (error.empty()) error = message;
}

void Yield(State state) {
  self->state = state;
  if (_setjmp(self->registers) == 0) _longjmp(scheduler, 1);
}

void Enter() {
  (*body)();
  Yield(State::kDone);
}

__attribute__((noinline)) void Prepare(Fiber& f, char* stack) {
  getcontext(&f.context);
  f.context.uc_stack = {stack, 0, kStackBytes};
  f.context.uc_link = nullptr;
  makecontext(&f.context, Enter, 0);
}

// Not inlined: what the caller keeps in registers would not survive the return by longjmp.
__attribute__((noinline)) void Resume(Fiber& f) {
  self = &f;
  threadIdx = f.thread;
  blockIdx = f.block_index;
  if (_setjmp(scheduler) != 0) return;
  if (f.started) _longjmp(f.registers, 1);
  f.started = true;
  setcontext(&f.context);
}

void Wait(Barrier& barrier, int all, Place place) {
  if (barrier.arrived == 0) barrier.first = place;
  if (barrier.first.line != place.line || std::strcmp(barrier.first.file, place.file) != 0) {
    Fail(Words(*self) + " waits at " + Words(place) + " where others wait at " + Words(barrier.first));
  }
  self->place = place;
  if (++barrier.arrived < all) {
    self->waits_at = &barrier;
    Yield(State::kWaiting);
    return;
  }
  barrier.arrived = 0;
  for (Fiber* f : running) {
    if (f->waits_at != &barrier) continue;
    f->waits_at = nullptr;
    f->state = State::kReady;
  }
}

void CheckGuards(BlockState& block, const Fiber& f) {
  for (size_t i = 0; i < kSharedGuardBytes; ++i) {
    if (block.shared()[block.shared_bytes + i] == kSharedFill) continue;
    return Fail("shared memory written past its end by the block of " + Words(f));
  }
}

// Lets all fibers run until they are done; false if something is wrong.
bool RunAll() {
  int idle_rounds = 0;
  while (true) {
    bool ran = false, progress = false;
    for (Fiber* f : running) {
      if (f->state != State::kReady && f->state != State::kPaused) continue;
      const bool paused = f->state == State::kPaused;
      Resume(*f);
      ran = true;
      progress |= !(paused && f->state == State::kPaused);
      if (!error.empty()) return false;
    }
    idle_rounds = progress ? 0 : idle_rounds + 1;
    if (!ran) break;
    if (idle_rounds > kMaxIdleRounds) break;
  }
  for (const Fiber* f : running) {
    if (f->state == State::kDone) continue;
    const char* what = f->state == State::kPaused ? " waits for other blocks for ever" : " waits alone at ";
    Fail(Words(*f) + what + (f->state == State::kPaused ? "" : Words(f->place)));
  }
  return error.empty();
}

struct Stacks {
  size_t bytes;
  char* base;
  explicit Stacks(size_t count) : bytes(count * kStackBytes) {
    base = static_cast<char*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                                   -1, 0));
  }
  ~Stacks() { munmap(base, bytes); }
};

bool RunBlocks(const std::vector<dim3>& blocks, dim3 grid, dim3 size, size_t shared_bytes) {
  blockDim = size;
  gridDim = grid;
  const size_t threads = size.x, warps = (threads + kWarp - 1) / kWarp;
  static std::unique_ptr<Stacks> stacks;
  if (!stacks || stacks->bytes < blocks.size() * threads * kStackBytes) {
    stacks.reset();
    stacks = std::make_unique<Stacks>(blocks.size() * threads);
  }
  std::vector<BlockState> states(blocks.size());
  std::vector<WarpState> warp_states(blocks.size() * warps);
  std::vector<Fiber> fibers(blocks.size() * threads);
  running.clear();
  for (size_t b = 0; b < blocks.size(); ++b) {
    states[b].memory.assign(shared_bytes + kSharedGuardBytes + 16, kSharedFill);
    states[b].shared_bytes = shared_bytes;
    states[b].threads = static_cast<int>(threads);
    for (size_t t = 0; t < threads; ++t) {
      Fiber& f = fibers[b * threads + t];
      f.thread = dim3(static_cast<unsigned>(t));
      f.block_index = blocks[b];
      f.lane = static_cast<int>(t % kWarp);
      f.block = &states[b];
      f.warp = &warp_states[b * warps + t / kWarp];
      Prepare(f, stacks->base + (b * threads + t) * kStackBytes);
      running.push_back(&f);
    }
  }
  if (order == 1) std::reverse(running.begin(), running.end());
  if (order > 1) std::shuffle(running.begin(), running.end(), std::mt19937(order));
  if (!RunAll()) return false;
  for (size_t b = 0; b < blocks.size(); ++b) CheckGuards(states[b], fibers[b * threads]);
  return error.empty();
}

}  // namespace

int LaneOfWarp() { return self->lane; }
void Pause() { Yield(State::kPaused); }
void BlockBarrier(Place place) { Wait(self->block->barrier, self->block->threads, place); }
void WarpBarrier(unsigned mask, Place place) { Exchange(mask, 0, place); }
void SetOrder(unsigned seed) { order = seed; }
void SetProcessors(int count) { processors = count; }
const char* LastError() { return error.c_str(); }

unsigned char* DynamicShared() { return self->block->shared(); }

const uint64_t* Exchange(unsigned mask, uint64_t word, Place place) {
  if (mask != 0xffffffffu) Fail("only whole warps exchange values here: " + Words(place));
  // Two sets in turn: a lane that is first at the next exchange does not overwrite what others still read.
  uint64_t* words = self->warp->words[self->exchanges++ % 2];
  words[self->lane] = word;
  const int left = self->block->threads - static_cast<int>(self->thread.x) / kWarp * kWarp;
  Wait(self->warp->barrier, std::min(left, kWarp), place);
  return words;
}

int AllowSharedBytes(const void* kernel, int bytes) {
  allowed_shared[kernel] = bytes;
  return cudaSuccess;
}

int Launch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes, bool cooperative,
           const std::function<void()>& thread) {
  error.clear();
  body = &thread;
  constexpr size_t kFreely = 48 * 1024;
  const auto asked = allowed_shared.find(kernel);
  const size_t allowed = asked == allowed_shared.end() ? kFreely : static_cast<size_t>(asked->second);
  if (shared_bytes > std::max(kFreely, allowed)) {
    Fail("more than 48 KB of shared memory without asking for it");
    return 1;
  }
  if (grid.x * grid.y * grid.z == 0 || (cooperative && grid.x > static_cast<unsigned>(processors))) {
    Fail("a grid of no blocks, or of more than can be resident together");
    return 1;
  }
  std::vector<dim3> blocks;
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) blocks.emplace_back(x, y);
  }
  if (cooperative) return !RunBlocks(blocks, grid, block, shared_bytes);
  if (order == 1) std::reverse(blocks.begin(), blocks.end());
  if (order > 1) std::shuffle(blocks.begin(), blocks.end(), std::mt19937(order));
  for (const dim3& b : blocks) {
    if (!RunBlocks({b}, grid, block, shared_bytes)) return 1;
  }
  return cudaSuccess;
}

}  // namespace emulation

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? emulation::processors : 99 * 1024;
  return cudaSuccess;
}
