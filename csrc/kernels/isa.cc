#include "kernels/isa.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

#if defined(__aarch64__)
#include <sys/auxv.h>
#elif defined(__x86_64__)
#include <cpuid.h>
#endif

namespace edge_sdk {
namespace {

bool HasAvx2() {
#if defined(__x86_64__)
  unsigned a = 0, b = 0, c = 0, d = 0;  // clang cannot ask for F16C by name
  const bool has_f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
  return has_f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

bool HasAvx512() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

bool HasNeonDot() {
#if defined(__aarch64__)
  constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP of the kernel's interface
  return (getauxval(AT_HWCAP) & kDotProduct) != 0;
#else
  return false;
#endif
}

const Isa& Choose() {
  if (const char* wanted = std::getenv("EDGE_SDK_ISA")) {
    if (const Isa* isa = FindIsa(wanted)) return *isa;
  }
  for (const char* name : {"avx512", "avx2", "neon"}) {
    if (const Isa* isa = FindIsa(name)) return *isa;
  }
  return PlainIsa();
}

}  // namespace

const Isa* FindIsa(const char* name) {
  if (!std::strcmp(name, "plain")) return &PlainIsa();
  if (!std::strcmp(name, "avx2")) return HasAvx2() ? Avx2Isa() : nullptr;
  if (!std::strcmp(name, "avx512")) return HasAvx512() ? Avx512Isa() : nullptr;
  if (!std::strcmp(name, "neon")) return HasNeonDot() ? NeonIsa() : nullptr;
  return nullptr;
}

const Isa& CurrentIsa() {
  static const Isa& chosen = Choose();
  return chosen;
}

}  // namespace edge_sdk
