#pragma once

#include <pybind11/pybind11.h>

namespace pyllama2c {

void register_errors(pybind11::module_& m);
void register_system(pybind11::module_& m);
void register_model(pybind11::module_& m);
void register_engine(pybind11::module_& m);

}  // namespace pyllama2c
