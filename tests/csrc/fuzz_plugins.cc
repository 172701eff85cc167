// libFuzzer on the TensorRT plugins' fields, as a network's author, a parser or an engine file brings them: bytes choose
// a plugin, what is damaged in its fields, and the questions a host then asks. trt_fuzz.h does the same from a seed.
#include <cstdio>
#include <cstdlib>

#include "trt_fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace edge_sdk::trt_test;
  static Library* const library = new Library(nullptr);  // the plugins are linked in
  static Fuzzer* const fuzzer = new Fuzzer(*library, 1);
  FuzzResult result;
  fuzzer->Round(Random(data, size), &result);
  if (result.silent) {
    std::fprintf(stderr, "a plugin was refused without a word, or its saved fields were\n");
    std::abort();
  }
  return 0;
}
