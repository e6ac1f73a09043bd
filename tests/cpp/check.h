// The whole test framework: CHECK says where and why, finish() says how it went.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>

namespace check {

inline int n_checks = 0;
inline int n_failures = 0;

inline void report(const char* file, int line, const char* expression, const std::string& why) {
    std::fprintf(stderr, "%s:%d: CHECK(%s) failed %s\n", file, line, expression, why.c_str());
    if (++n_failures >= 20) {
        std::fprintf(stderr, "too many failures\n");
        std::exit(1);
    }
}

inline int finish(const char* name) {
    std::printf("%s: %d checks, %d failures\n", name, n_checks, n_failures);
    return n_failures == 0 && n_checks > 0 ? 0 : 1;
}

}  // namespace check

// CHECK(condition) or CHECK(condition, "x = " << x)
#define CHECK(condition, ...)                                          \
    do {                                                               \
        ++check::n_checks;                                             \
        if (!(condition)) {                                            \
            std::ostringstream why_;                                   \
            why_ << "" __VA_OPT__(<<) __VA_ARGS__;                     \
            check::report(__FILE__, __LINE__, #condition, why_.str()); \
        }                                                              \
    } while (false)

// The expression throws an exception of this type.
#define CHECK_THROWS(expression, type)                                                  \
    do {                                                                                \
        ++check::n_checks;                                                              \
        bool threw_ = false;                                                            \
        try {                                                                           \
            static_cast<void>(expression);                                              \
        } catch (const type&) {                                                         \
            threw_ = true;                                                              \
        }                                                                               \
        if (!threw_) check::report(__FILE__, __LINE__, #expression, "threw no " #type); \
    } while (false)
