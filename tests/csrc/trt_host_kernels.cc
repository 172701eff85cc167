// The CUDA functions that the plugins call, over host memory and the CPU kernels. With them a plugin's enqueue runs and
// gives real results where there is no GPU: what is tested is which bytes the plugin hands to which parameter.
#include "core/team.h"
#include "kernels/group_tokens.h"
#include "kernels/speech_head.h"

namespace edge_sdk {
namespace {

// A kernel cannot refuse: what the CPU says of the values goes into the state, which then stops every later call until
// the caller clears it. Only a mistake in the call comes back.
Status ToState(const Status& status, SpeechHeadCudaState* state) {
  state->error = static_cast<int32_t>(status.code());
  return {};
}

}  // namespace

// The last byte is written in every call, so that a workspace which the host made too small shows.
size_t SpeechHeadWorkspaceBytes(const SpeechHeadShape& shape, int32_t max_count) {
  return static_cast<size_t>(shape.width) * (static_cast<size_t>(max_count) + 1);
}

Status SpeechHeadPrefillCuda(const SpeechHeadShape& shape, const SpeechHeadWeights& weights,
                             const SpeechHeadCache& cache, const float* head_input, int32_t count,
                             SpeechHeadCudaState* state, void* workspace, void*) {
  EDGE_RETURN_IF_ERROR(CheckSpeechHead(shape, weights));
  EDGE_RETURN_IF_ERROR(CheckSpeechHeadCache(shape, cache));
  static_cast<char*>(workspace)[SpeechHeadWorkspaceBytes(shape, count) - 1] = 1;
  if (count == 0 || state->error != 0) return {};
  Team team(1);
  const Status status = SpeechHeadPrefillCpu(shape, weights, cache, head_input, count, state->length, team);
  if (status.ok()) state->length += count * shape.group_size;
  return ToState(status, state);
}

Status SpeechHeadGroupCuda(const SpeechHeadShape& shape, const SpeechHeadWeights& weights, const SpeechHeadCache& cache,
                           const SpeechHeadGroup& given, SpeechHeadCudaState* state, void* workspace, void*) {
  EDGE_RETURN_IF_ERROR(CheckSpeechHead(shape, weights));
  EDGE_RETURN_IF_ERROR(CheckSpeechHeadCache(shape, cache));
  static_cast<char*>(workspace)[SpeechHeadWorkspaceBytes(shape, 0) - 1] = 1;
  if (state->error != 0) return {};
  SpeechHeadGroup group = given;
  group.last_id = state->last_id;
  group.length = state->length;
  if (const SpeechHeadCudaSampling* s = given.cuda_sampling) {
    const uint64_t seed = uint64_t{s->seed_high} << 32 | s->seed_low;
    group.sampling = {s->do_sample, s->temperature, s->top_p, s->top_k, s->repetition_penalty, seed, 0, 0};
  }
  group.sampling.turn = state->turn;
  group.sampling.step = state->step;
  Team team(1);
  const Status status = SpeechHeadGroupCpu(shape, weights, cache, group, team);
  if (status.ok()) {
    state->last_id = group.ids[shape.group_size - 1];
    state->length += shape.group_size;
    state->step += 1;
  }
  return ToState(status, state);
}

Status GroupTokensCuda(const GroupTokensArgs& args, int32_t* bad_id, void*) {
  const Status status = GroupTokensCpu(args);
  if (!status.ok()) *bad_id = 1;
  return {};
}

Status GroupRowsCuda(const GroupRowsArgs& args, void*) { return GroupRowsCpu(args); }

}  // namespace edge_sdk
