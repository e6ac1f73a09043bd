#include "model/tensors.h"

#include <algorithm>
#include <cstring>

#include "kernels/half.h"

namespace pyllama2c {

namespace {

template <typename T>
T load(const unsigned char* p) {
    T value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

}  // namespace

void Tensor::read_row(int64_t row, float* out) const {
    const int64_t first = row * cols;
    switch (dtype) {
        case DType::kFloat32:
            std::memcpy(out, data + first * 4, static_cast<size_t>(cols) * 4);
            break;
        case DType::kFloat16:
            for (int64_t i = 0; i < cols; ++i) {
                out[i] = half_to_float(load<uint16_t>(data + (first + i) * 2));
            }
            break;
        case DType::kBFloat16:
            for (int64_t i = 0; i < cols; ++i) {
                out[i] = bfloat16_to_float(load<uint16_t>(data + (first + i) * 2));
            }
            break;
        case DType::kInt8:
            for (int64_t i = 0; i < cols;) {
                const int64_t group = (first + i) / group_size;
                const int64_t end = std::min(cols, (group + 1) * group_size - first);
                const float scale = load<float>(scales + group * 4);
                for (; i < end; ++i) {
                    out[i] = static_cast<float>(load<int8_t>(data + first + i)) * scale;
                }
            }
            break;
    }
}

}  // namespace pyllama2c
