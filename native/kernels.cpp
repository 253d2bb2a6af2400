#include "kernels.h"

#include <atomic>
#include <cstring>

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace bluejay {

extern const Kernels k_portable;
#if defined(__x86_64__)
extern const Kernels k_avx2, k_avx512, k_avx512_bf16;
#elif defined(__aarch64__)
extern const Kernels k_neon;
#endif

namespace {

#if defined(__aarch64__)
// Whether the processor multiplies bytes four at a time (the extension "dotprod").
bool has_dot_product() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
  return true;  // every Mac with this architecture
#endif
}
#endif

struct Choice {
  const Kernels* table;
  bool (*is_supported)();
};

// Best first.
const Choice kChoices[] = {
#if defined(__x86_64__)
    {&k_avx512_bf16,
     [] {
       return __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") &&
              __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512vl");
     }},
    {&k_avx512,
     [] {
       return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     }},
    {&k_avx2,
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
     }},
#endif
#if defined(__aarch64__)
    {&k_neon, has_dot_product},
#endif
    {&k_portable, [] { return true; }},
};

const Kernels* best() {
  for (const Choice& choice : kChoices)
    if (choice.is_supported()) return choice.table;
  return &k_portable;
}

std::atomic<const Kernels*> chosen{nullptr};

}  // namespace

const Kernels& kernels() {
  const Kernels* found = chosen.load(std::memory_order_acquire);
  if (found == nullptr) {
    found = best();
    chosen.store(found, std::memory_order_release);
  }
  return *found;
}

bool force_kernels(const char* name) {
  for (const Choice& choice : kChoices)
    if (std::strcmp(choice.table->name, name) == 0 && choice.is_supported()) {
      chosen.store(choice.table, std::memory_order_release);
      return true;
    }
  return false;
}

}  // namespace bluejay
