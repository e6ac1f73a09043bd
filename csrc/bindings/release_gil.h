// Lets other threads run Python while this one computes.
#pragma once

#include <pybind11/pybind11.h>
#include <unistd.h>

namespace pyllama2c {

// As py::gil_scoped_release, but safe in a thread that Python leaves behind when it ends (a daemon
// thread): before 3.14, taking the GIL then unwinds the thread out of the destructor, which ends
// the process where that must not throw.
class ReleaseGil {
  public:
    ReleaseGil() : is_last_(python_ends()), state_(PyEval_SaveThread()) {}
    ReleaseGil(const ReleaseGil&) = delete;
    ReleaseGil& operator=(const ReleaseGil&) = delete;
    ~ReleaseGil() noexcept(false) {
        while (!is_last_ && python_ends()) pause();  // until the process does
        PyEval_RestoreThread(state_);
    }

  private:
    static bool python_ends() {
#if PY_VERSION_HEX >= 0x030D0000
        return Py_IsFinalizing() != 0;
#else
        return _Py_IsFinalizing() != 0;
#endif
    }

    bool is_last_;  // of Python's threads: the one that ends it, and goes on
    PyThreadState* state_;
};

}  // namespace pyllama2c
