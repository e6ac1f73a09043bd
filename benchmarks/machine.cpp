// What this machine can do at best: read memory, and multiply and add in registers. machine.py
// compiles this with -O3 -march=native and calls it.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

using Clock = std::chrono::steady_clock;

std::atomic<int64_t> sink;  // results go here, so that no compiler drops the work

// Runs `pass` on each thread again and again for `seconds`, all at the same time, and returns the
// passes per second of all threads together.
double passes_per_second(int n_threads, double seconds, const std::function<void(int)>& pass) {
    std::atomic<int> ready{0};
    std::vector<double> rates(n_threads);
    const auto work = [&](int rank) {
        pass(rank);  // warms up
        ready++;
        while (ready < n_threads) std::this_thread::yield();
        const auto start = Clock::now();
        double elapsed = 0;
        int n = 0;
        for (; elapsed < seconds; ++n) {
            pass(rank);
            elapsed = std::chrono::duration<double>(Clock::now() - start).count();
        }
        rates[rank] = n / elapsed;
    };
    std::vector<std::thread> threads;
    for (int rank = 1; rank < n_threads; ++rank) threads.emplace_back(work, rank);
    work(0);
    for (auto& thread : threads) thread.join();
    double sum = 0;
    for (const double rate : rates) sum += rate;
    return sum;
}

using Line = int64_t __attribute__((vector_size(64)));  // a cache line, in whatever registers

// Reads in four streams with two sums each, so that many loads are under way at once.
void read_lines(const Line* lines, size_t n) {
    const size_t quarter = n / 4;
    Line sums[8] = {};
    for (size_t i = 0; i + 1 < quarter; i += 2) {
        for (size_t stream = 0; stream < 4; ++stream) {
            const Line* at = lines + stream * quarter + i;
            sums[2 * stream] ^= at[0];
            sums[2 * stream + 1] ^= at[1];
        }
    }
    Line sum = {};
    for (const Line& s : sums) sum ^= s;
    sink += sum[0];
}

// Sums that do not wait for each other: twice the latency of an instruction times the number of
// units that execute it, where there are registers for them. With hardly more than that one unit
// or the other idles now and then.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kChains = 20;
#else
constexpr int kChains = 12;
#endif
constexpr int kRounds = 20000;

#if defined(__x86_64__)
#define KEEP_IN_REGISTER(x) asm volatile("" : "+v"(x))
#else
#define KEEP_IN_REGISTER(x) asm volatile("" : "+w"(x))
#endif

// Operations per second, where each step(sum) multiplies and adds `macs` pairs of numbers.
template <typename Sum, typename Step>
double operations(int macs, int n_threads, double seconds, Step step) {
    const auto pass = [&](int) {
        Sum sums[kChains] = {};
        for (int round = 0; round < kRounds; ++round) {
#pragma GCC unroll 20
            for (int i = 0; i < kChains; ++i) {
                step(sums[i]);
                KEEP_IN_REGISTER(sums[i]);
            }
        }
        int64_t bits;
        std::memcpy(&bits, sums, sizeof bits);
        sink += bits;
    };
    return passes_per_second(n_threads, seconds, pass) * 2.0 * macs * kChains * kRounds;
}

}  // namespace

extern "C" {

// Pages that have been written to, to read from: huge ones or small ones. Null where there is not
// enough memory.
void* memory_open(size_t bytes, int huge) {
    void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return nullptr;
    ::madvise(data, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    std::memset(data, 1, bytes);
    return data;
}

void memory_close(void* data, size_t bytes) { ::munmap(data, bytes); }

// Bytes per second, each thread reading its own share again and again.
double memory_read(const void* data, size_t bytes, int n_threads, double seconds) {
    const size_t share = bytes / sizeof(Line) / n_threads;
    const auto* lines = static_cast<const Line*>(data);
    const auto pass = [&](int rank) { read_lines(lines + rank * share, share); };
    return passes_per_second(n_threads, seconds, pass) * static_cast<double>(share * sizeof(Line));
}

double peak_float32(int n_threads, double seconds) {
#if defined(__AVX512F__)
    const __m512 x = _mm512_set1_ps(0.5f);
    return operations<__m512>(16, n_threads, seconds,
                              [=](__m512& sum) { sum = _mm512_fmadd_ps(sum, x, x); });
#elif defined(__FMA__)
    const __m256 x = _mm256_set1_ps(0.5f);
    return operations<__m256>(8, n_threads, seconds,
                              [=](__m256& sum) { sum = _mm256_fmadd_ps(sum, x, x); });
#elif defined(__aarch64__)
    const float32x4_t x = vdupq_n_f32(0.5f);
    return operations<float32x4_t>(4, n_threads, seconds,
                                   [=](float32x4_t& sum) { sum = vfmaq_f32(x, sum, x); });
#else
    return static_cast<void>(n_threads), static_cast<void>(seconds), 0;
#endif
}

double peak_bfloat16(int n_threads, double seconds) {
#if defined(__AVX512BF16__)
    const __m512bh x = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.5f));
    return operations<__m512>(32, n_threads, seconds,
                              [=](__m512& sum) { sum = _mm512_dpbf16_ps(sum, x, x); });
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
    const bfloat16x8_t x = vdupq_n_bf16(vcvth_bf16_f32(0.5f));
    return operations<float32x4_t>(8, n_threads, seconds,
                                   [=](float32x4_t& sum) { sum = vbfdotq_f32(sum, x, x); });
#else
    return static_cast<void>(n_threads), static_cast<void>(seconds), 0;
#endif
}

double peak_int8(int n_threads, double seconds) {
#if defined(__AVX512VNNI__)
    const __m512i x = _mm512_set1_epi8(3);
    return operations<__m512i>(64, n_threads, seconds,
                               [=](__m512i& sum) { sum = _mm512_dpbusd_epi32(sum, x, x); });
#elif defined(__AVXVNNI__)
    const __m256i x = _mm256_set1_epi8(3);
    return operations<__m256i>(32, n_threads, seconds,
                               [=](__m256i& sum) { sum = _mm256_dpbusd_avx_epi32(sum, x, x); });
#elif defined(__ARM_FEATURE_DOTPROD)
    const int8x16_t x = vdupq_n_s8(3);
    return operations<int32x4_t>(16, n_threads, seconds,
                                 [=](int32x4_t& sum) { sum = vdotq_s32(sum, x, x); });
#else
    return static_cast<void>(n_threads), static_cast<void>(seconds), 0;
#endif
}

}  // extern "C"
