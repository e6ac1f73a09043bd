// What this build and this machine offer.
#include <pybind11/stl.h>

#include "base/cpu_info.h"
#include "base/parallel.h"
#include "bindings/bindings.h"
#include "kernels/kernels.h"

namespace pyllama2c {

void register_system(pybind11::module_& m) {
    m.def("supported_isas", &supported_isas, "Instruction sets of this CPU, best first.");
    m.def("isa", [] { return kernels().isa; }, "The instruction set that new models will use.");
    m.def("available_cpus", &available_cpus,
          "CPUs that this process may use: the smaller of its affinity and its container's quota.");
    m.def("has_openmp", &has_openmp, "Whether this build can use more than one thread.");
}

}  // namespace pyllama2c
