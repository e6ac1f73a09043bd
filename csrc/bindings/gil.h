// Lets other threads run Python while this one computes.
#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

namespace pyllama2c {

// As py::gil_scoped_release, for threads that Python may leave behind when it ends (daemon
// threads). Such a thread never gets the GIL again. Before 3.14 Python unwinds it, through code
// that must not be left that way and past destructors that ask for the GIL once more, which aborts
// the process. So the unwinding is caught here and the thread stays until the process is gone, as
// with 3.14.
class ReleaseGil {
  public:
    ReleaseGil() : state_(PyEval_SaveThread()) {}
    ReleaseGil(const ReleaseGil&) = delete;
    ReleaseGil& operator=(const ReleaseGil&) = delete;
    ~ReleaseGil() { take(); }

    // To make another thread state, as py::gil_scoped_acquire may, is not safe once Python ends.
    void take() noexcept {
        try {
            PyEval_RestoreThread(state_);
        } catch (...) {
            for (;;) pause();  // to leave this handler would abort too
        }
    }
    void release() noexcept { state_ = PyEval_SaveThread(); }

  private:
    PyThreadState* state_;
};

// The GIL for a while within a ReleaseGil's life.
class RetakeGil {
  public:
    explicit RetakeGil(ReleaseGil& released) : released_(released) { released_.take(); }
    RetakeGil(const RetakeGil&) = delete;
    RetakeGil& operator=(const RetakeGil&) = delete;
    ~RetakeGil() { released_.release(); }

  private:
    ReleaseGil& released_;
};

}  // namespace pyllama2c
