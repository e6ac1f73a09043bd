// C++ errors become the Python classes of pyllama2c/errors.py, here and nowhere else.
#include "base/error.h"

#include "bindings/bindings.h"

namespace py = pybind11;

namespace pyllama2c {

namespace {

void raise(const char* name, const std::exception& error) {
    const py::object type = py::module_::import("pyllama2c.errors").attr(name);
    // A path in it has whatever bytes the file system has.
    const auto message = py::reinterpret_steal<py::object>(PyUnicode_DecodeFSDefault(error.what()));
    py::set_error(type, message);
}

}  // namespace

void register_errors(py::module_&) {
    py::register_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer) std::rethrow_exception(pointer);
        } catch (const CheckpointError& error) {
            raise("CheckpointError", error);
        } catch (const ArgumentError& error) {
            raise("ArgumentError", error);
        } catch (const CapacityError& error) {
            raise("CapacityError", error);
        } catch (const OverloadedError& error) {
            raise("Overloaded", error);
        }
    });
}

}  // namespace pyllama2c
