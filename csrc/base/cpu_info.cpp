#include "base/cpu_info.h"

#include <sched.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <thread>

namespace pyllama2c {

std::vector<std::string> supported_isas() {
    std::vector<std::string> isas;
#if defined(__x86_64__)
    __builtin_cpu_init();  // also asks whether the operating system saves the wide registers
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vnni")) {
        isas.push_back("avx512");
    }
    // By number, for older compilers have no name for these two.
    unsigned eax = 0, ebx, ecx = 0, edx;
    const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c) {
#if defined(PYLLAMA2C_AVXVNNI)
        if (__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & 1u << 4)) {
            isas.push_back("avxvnni");
        }
#endif
        isas.push_back("avx2");
    }
#elif defined(__aarch64__)
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) isas.push_back("neon");
#endif
    isas.push_back("scalar");
    return isas;
}

namespace {

// The smallest CPU quota of this process's cgroup and its ancestors (v2, or v1's cpu controller);
// 0 where there is none.
double cgroup_cpus() {
    double cpus = 0;
    auto consider = [&](double quota, double period) {
        if (quota > 0 && period > 0 && (cpus == 0 || quota / period < cpus)) cpus = quota / period;
    };
    std::ifstream self("/proc/self/cgroup");  // lines of hierarchy:controllers:path
    for (std::string line; std::getline(self, line);) {
        const size_t first = line.find(':');
        if (first == std::string::npos) continue;
        const size_t second = line.find(':', first + 1);
        if (second == std::string::npos) continue;
        const std::string controllers = line.substr(first + 1, second - first - 1);
        const bool v2 = controllers.empty();
        if (!v2 && ("," + controllers + ",").find(",cpu,") == std::string::npos) continue;
        for (std::string path = line.substr(second + 1);; path = path.substr(0, path.rfind('/'))) {
            if (path == "/") path.clear();
            if (v2) {
                std::ifstream file("/sys/fs/cgroup" + path + "/cpu.max");
                std::string quota;
                double period = 0;
                if (file >> quota >> period) consider(std::atof(quota.c_str()), period);
            } else {
                const std::string folder = "/sys/fs/cgroup/cpu" + path;
                std::ifstream quota_file(folder + "/cpu.cfs_quota_us");
                std::ifstream period_file(folder + "/cpu.cfs_period_us");
                double quota = 0, period = 0;
                if (quota_file >> quota && period_file >> period) consider(quota, period);
            }
            if (path.empty()) break;
        }
    }
    return cpus;
}

}  // namespace

int available_cpus() {
    int cpus = static_cast<int>(std::thread::hardware_concurrency());
    cpu_set_t mask;
    if (sched_getaffinity(0, sizeof mask, &mask) == 0) cpus = CPU_COUNT(&mask);
    // A quota of 1.5 CPUs is worth two threads: both run for most of each period.
    const double quota = cgroup_cpus();
    if (quota > 0) cpus = std::min(cpus, static_cast<int>(std::ceil(quota)));
    return std::max(cpus, 1);
}

}  // namespace pyllama2c
