// Which instruction set runs: decided by the processor, or by SEMIVARIO_ISA.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "amx_product.h"
#include "tile_kernels.h"

namespace semivario {

extern const Kernels kernels_baseline;
#if defined(SEMIVARIO_X86_LEVELS)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;

// AVX-512 with the products of amx_product.h.
static const Kernels& kernels_amx() {
    static const Kernels kernels = [] {
        Kernels made = kernels_avx512;
        made.name = "amx";
        return made;
    }();
    return kernels;
}
#endif

const Kernels& choose_kernels() {
    const Kernels* runnable[4] = {&kernels_baseline};
    int count = 1;
#if defined(SEMIVARIO_X86_LEVELS)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) runnable[count++] = &kernels_avx2;
    if (count == 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw")) {
        runnable[count++] = &kernels_avx512;
    }
    if (count == 3 && amx_unavailable() == nullptr) runnable[count++] = &kernels_amx();
#endif
    const char* wanted = std::getenv("SEMIVARIO_ISA");
    if (wanted == nullptr || *wanted == '\0') return *runnable[count - 1];
    std::string names;
    for (int k = 0; k < count; ++k) {
        if (runnable[k]->name == std::string(wanted)) return *runnable[k];
        names += (k ? ", " : "") + std::string(runnable[k]->name);
    }
    throw std::invalid_argument("SEMIVARIO_ISA: wanted one of " + names + " on this processor, got '" + wanted + "'");
}

}  // namespace semivario
