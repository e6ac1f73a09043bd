// The few errors that the engine throws. bindings/errors.cpp maps each to one Python exception.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace pyllama2c {

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct CheckpointError : Error {  // a model file is truncated, foreign or inconsistent
    using Error::Error;
};
struct ArgumentError : Error {  // an argument is out of range
    using Error::Error;
};
struct CapacityError : Error {  // it can never fit into the memory or context given
    using Error::Error;
};
struct OverloadedError : Error {  // too many requests wait already
    using Error::Error;
};

// text("dim is ", 7, ", expected ...") -> std::string
template <typename... Parts>
std::string text(const Parts&... parts) {
    std::ostringstream out;
    (out << ... << parts);
    return out.str();
}

}  // namespace pyllama2c
