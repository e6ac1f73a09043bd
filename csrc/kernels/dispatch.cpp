#include <cstdlib>
#include <cstring>
#include <string>

#include "base/cpu_info.h"
#include "base/error.h"
#include "kernels/kernels.h"

namespace pyllama2c {

const KernelTable* find_kernels(const char* isa) {
    static const KernelTable* const tables[] = {
#if defined(__x86_64__)
        &avx512_kernels,
#if defined(PYLLAMA2C_AVXVNNI)
        &avxvnni_kernels,
#endif
        &avx2_kernels,
#elif defined(__aarch64__)
        &neon_kernels,
#endif
        &scalar_kernels,
    };
    for (const std::string& supported : supported_isas()) {
        if (supported != isa) continue;
        for (const KernelTable* table : tables) {
            if (std::strcmp(table->isa, isa) == 0) return table;
        }
    }
    return nullptr;
}

const KernelTable& kernels() {
    const char* forced = std::getenv("PYLLAMA2C_FORCE_ISA");
    const std::string isa = forced != nullptr && *forced ? forced : supported_isas().front();
    if (const KernelTable* table = find_kernels(isa.c_str())) return *table;
    std::string known;
    for (const std::string& name : supported_isas()) known += (known.empty() ? "" : ", ") + name;
    throw ArgumentError(text("PYLLAMA2C_FORCE_ISA is ", isa, "; this CPU has ", known));
}

}  // namespace pyllama2c
