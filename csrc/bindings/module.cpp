// The _core extension module: one register_* per topic.
#include "bindings/bindings.h"

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used(),
                pybind11::multiple_interpreters::not_supported()) {
    m.doc() = "The C++ engine behind pyllama2c.";
    pyllama2c::register_errors(m);
    pyllama2c::register_system(m);
    pyllama2c::register_model(m);
    pyllama2c::register_engine(m);
}
