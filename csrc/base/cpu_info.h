// What this machine and this process may use.
#pragma once

#include <string>
#include <vector>

namespace pyllama2c {

// Instruction sets that this CPU and its operating system support, best first. Always ends with
// "scalar". "avx512" stands for F, BW, DQ, VL and VNNI together, "avx2" for AVX2, FMA and F16C,
// "avxvnni" for these and AVX-VNNI (where the compiler knows it), "neon" for NEON with the dot
// product instructions of ARMv8.2.
std::vector<std::string> supported_isas();

// min(CPUs in the affinity mask, the container's CPU quota), at least 1.
int available_cpus();

}  // namespace pyllama2c
