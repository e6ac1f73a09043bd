// Lets Ctrl-C through while C++ computes without the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>

#include "bindings/gil.h"

namespace pyllama2c {

// Taking the GIL may have to wait for other threads, so it is asked for at most once a millisecond.
class SignalCheck {
  public:
    explicit SignalCheck(ReleaseGil& released) : released_(released) {}

    void operator()() {
        const auto now = std::chrono::steady_clock::now();
        if (now - last_ < std::chrono::milliseconds(1)) return;
        last_ = now;
        const RetakeGil taken(released_);
        if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
    }

  private:
    ReleaseGil& released_;
    std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

}  // namespace pyllama2c
