// Tells models apart: for a saved text that must go on with the weights it began with.
#pragma once

#include <cstdint>

#include "model/weights.h"

namespace pyllama2c {

// A hash of config, type and every packed byte, at the speed of memory. Equal for equal weights on
// every machine; made against mistakes, not against somebody who wants two to be equal.
uint64_t fingerprint(const Weights& weights);

}  // namespace pyllama2c
