#include "model/matrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/half.h"

namespace pyllama2c {

size_t Matrix::panel_bytes() const {
    const size_t inputs = k;
    switch (packing) {
        case Packing::kFloat32: return inputs * kLanes * 4;
        case Packing::kBFloat16: return (inputs + 1) / 2 * kLanes * 4;
        case Packing::kInt8: return (inputs + 3) / 4 * kLanes * 4;
        case Packing::kInt4: return (inputs + 7) / 8 * kLanes * 4;
    }
    return 0;
}

size_t Matrix::panel_scale_bytes() const {
    if (packing == Packing::kInt8) return (group_scales ? groups() : 1) * kLanes * sizeof(float);
    if (packing == Packing::kInt4) return groups() * kLanes * sizeof(uint16_t);
    return 0;
}

namespace {

// Nearest bfloat16, ties to even.
uint16_t float_to_bfloat16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
    return static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

void pack_float32(const Matrix& to, char* panel, const float* rows) {
    float* out = reinterpret_cast<float*>(panel);
    const int stride = padded(to.k);
    for (int i = 0; i < to.k; ++i) {
        for (int lane = 0; lane < kLanes; ++lane) out[i * kLanes + lane] = rows[lane * stride + i];
    }
}

void pack_bfloat16(const Matrix& to, char* panel, const float* rows) {
    uint16_t* out = reinterpret_cast<uint16_t*>(panel);
    const int stride = padded(to.k);
    for (int i = 0; i < (to.k + 1) / 2 * 2; ++i) {
        for (int lane = 0; lane < kLanes; ++lane) {
            out[(i / 2 * kLanes + lane) * 2 + i % 2] = float_to_bfloat16(rows[lane * stride + i]);
        }
    }
}

// One scale per row, max|w| / 127: with activations rounded to int8 too, finer scales gain little
// (see docs/performance.md), and cost 3 % of the bandwidth.
void pack_int8(const Matrix& to, char* panel, char* scales, float* rows,
               const KernelTable& kernels) {
    const int stride = padded(to.k);
    int8_t* row = reinterpret_cast<int8_t*>(rows + kLanes * stride);
    for (int lane = 0; lane < kLanes; ++lane) {
        int32_t sum = 0;
        float* scale = reinterpret_cast<float*>(scales) + lane;
        kernels.quantize(rows + lane * stride, to.k, stride, row, scale, &sum);
        for (int i = 0; i < (to.k + 3) / 4; ++i) {
            uint32_t quad;
            std::memcpy(&quad, row + i * 4, 4);
            quad ^= 0x80808080u;  // + 128 in each byte
            std::memcpy(panel + (static_cast<size_t>(i) * kLanes + lane) * 4, &quad, 4);
        }
    }
}

void pack_int4(const Matrix& to, char* panel, char* scales, const float* rows,
               const KernelTable& kernels) {
    const int stride = padded(to.k), octets = (to.k + 7) / 8;
    uint16_t* half_scales = reinterpret_cast<uint16_t*>(scales);
    alignas(64) float x[kInt4Group][kLanes];
    alignas(64) int8_t q[kInt4Group][kLanes];
    for (int g = 0; g < to.groups(); ++g) {
        const int start = g * kInt4Group, count = std::min(kInt4Group, stride - start);
        for (int i = 0; i < kInt4Group; ++i) {
            for (int lane = 0; lane < kLanes; ++lane) {
                x[i][lane] = i < count ? rows[lane * stride + start + i] : 0.0f;
            }
        }
        kernels.quantize_int4(x[0], q[0], half_scales + g * kLanes);
        for (int o = 0; o < kInt4Group / 8 && start / 8 + o < octets; ++o) {
            char* out = panel + (start / 8 + o) * static_cast<size_t>(kLanes) * 4;
            for (int i = 0; i < 4; ++i) {
                for (int lane = 0; lane < kLanes; ++lane) {
                    const int low = q[o * 8 + i][lane] + 8, high = q[o * 8 + 4 + i][lane] + 8;
                    out[lane * 4 + i] = static_cast<char>(low | high << 4);
                }
            }
        }
    }
}

}  // namespace

void pack_panel(const Matrix& to, int panel, float* rows, const KernelTable& kernels) {
    char* data = to.data + panel * to.panel_bytes();
    char* scales = to.scales + panel * to.panel_scale_bytes();
    switch (to.packing) {
        case Packing::kFloat32: return pack_float32(to, data, rows);
        case Packing::kBFloat16: return pack_bfloat16(to, data, rows);
        case Packing::kInt8: return pack_int8(to, data, scales, rows, kernels);
        case Packing::kInt4: return pack_int4(to, data, scales, rows, kernels);
    }
}

void pack_int8_panel(const Matrix& to, int panel, const Int8Rows& rows) {
    char* data = to.data + panel * to.panel_bytes();
    float* scales = reinterpret_cast<float*>(to.scales + panel * to.panel_scale_bytes());
    for (int lane = 0; lane < kLanes; ++lane) {
        const unsigned char* values = rows.values[lane];
        for (int i = 0; i < (to.k + 3) / 4; ++i) {
            uint32_t quad = 0;
            if (values != nullptr) std::memcpy(&quad, values + i * 4, std::min(4, to.k - i * 4));
            quad ^= 0x80808080u;
            std::memcpy(data + (static_cast<size_t>(i) * kLanes + lane) * 4, &quad, 4);
        }
        for (int g = 0; g < to.groups(); ++g) {
            float scale = 0.0f;
            if (values != nullptr) std::memcpy(&scale, rows.scales[lane] + g * 4, sizeof scale);
            scales[g * kLanes + lane] = scale;
        }
    }
}

void Matrix::read_row(int row, float* out) const {
    const int panel = row / kLanes, lane = row % kLanes;
    const char* w = data + panel * panel_bytes();
    const char* s = scales + panel * panel_scale_bytes();
    for (int i = 0; i < k; ++i) {
        const size_t octet = static_cast<size_t>(i) / 8, quad = static_cast<size_t>(i) / 4;
        switch (packing) {
            case Packing::kFloat32:
                out[i] = reinterpret_cast<const float*>(w)[static_cast<size_t>(i) * kLanes + lane];
                break;
            case Packing::kBFloat16: {
                const size_t at = (static_cast<size_t>(i) / 2 * kLanes + lane) * 2 + i % 2;
                out[i] = bfloat16_to_float(reinterpret_cast<const uint16_t*>(w)[at]);
                break;
            }
            case Packing::kInt8: {
                const int value =
                    reinterpret_cast<const uint8_t*>(w)[(quad * kLanes + lane) * 4 + i % 4] - 128;
                const int g = group_scales ? i / group : 0;
                out[i] = static_cast<float>(value) *
                         reinterpret_cast<const float*>(s)[g * kLanes + lane];
                break;
            }
            case Packing::kInt4: {
                const int pair =
                    reinterpret_cast<const uint8_t*>(w)[(octet * kLanes + lane) * 4 + i % 4];
                const int value = (i % 8 < 4 ? pair & 15 : pair >> 4) - 8;
                out[i] =
                    static_cast<float>(value) *
                    half_to_float(reinterpret_cast<const uint16_t*>(s)[i / group * kLanes + lane]);
                break;
            }
        }
    }
}

}  // namespace pyllama2c
