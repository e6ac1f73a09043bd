#include "model/packer.h"

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "base/buffer.h"
#include "base/parallel.h"

namespace pyllama2c {

size_t Packer::append_panels(const Matrix& to) {
    const size_t first = panels_.size();
    for (int p = 0; p < to.panels; ++p) panels_.push_back({&to, p, {}});
    return first;
}

void Packer::stack(const Matrix& to, std::initializer_list<const Tensor*> parts) {
    const size_t first = append_panels(to);
    int64_t filled = 0;
    for (const Tensor* part : parts) {
        for (int64_t row = 0; row < part->rows; ++row, ++filled) {
            panels_[first + filled / kLanes].rows[filled % kLanes] = {part, row};
        }
    }
}

void Packer::interleave(const Matrix& to, const Tensor& a, const Tensor& b) {
    const size_t first = append_panels(to);
    for (int64_t row = 0; row < a.rows; ++row) {
        const size_t pair = first + row / kLanes * 2;
        panels_[pair].rows[row % kLanes] = {&a, row};
        panels_[pair + 1].rows[row % kLanes] = {&b, row};
    }
}

namespace {

// Whether bfloat16 would make an infinity of a finite one.
bool any_overflows(const float* x, size_t n) {
    constexpr float kTooLarge = 0x1.FFp127f;  // half a step beyond the largest
    int found = 0;  // without an early end the compiler makes vectors of it
    for (size_t i = 0; i < n; ++i) {
        found |= static_cast<int>(std::abs(x[i]) >= kTooLarge) &
                 static_cast<int>(std::abs(x[i]) <= FLT_MAX);
    }
    return found != 0;
}

// Whether none of the floats, wherever they stand, is beyond `most`, an infinity or a NaN.
bool all_within(float most, const void* x, size_t n) {
    uint32_t limit, largest = 0;  // as integers, so that the compiler makes vectors of it
    std::memcpy(&limit, &most, sizeof limit);
    for (size_t i = 0; i < n; ++i) {
        uint32_t bits;
        std::memcpy(&bits, static_cast<const char*>(x) + i * sizeof bits, sizeof bits);
        largest = std::max(largest, bits & 0x7FFFFFFFu);
    }
    return largest <= limit;
}

// Whether the packing can hold these numbers: integers no infinity or NaN, bfloat16 no finite
// number that it would round to an infinity.
bool can_hold(Packing packing, const float* x, size_t n) {
    switch (packing) {
        case Packing::kFloat32: return true;
        case Packing::kBFloat16: return !any_overflows(x, n);
        case Packing::kInt8: return all_within(FLT_MAX, x, n);
        case Packing::kInt4: return all_within(kLargestInt4, x, n);
    }
    return false;
}

}  // namespace

const Tensor* Packer::run(int n_threads) {
    std::atomic<size_t> next{0};
    std::atomic<size_t> first_bad{panels_.size()};
    size_t widest = 0;
    for (const Panel& panel : panels_) widest = std::max<size_t>(widest, padded(panel.to->k));
    std::vector<Buffer<float>> scratch(n_threads);
    for (Buffer<float>& rows : scratch) rows = Buffer<float>(widest * (kLanes + 1));
    const KernelTable& table = kernels();
    parallel(n_threads, [&](Team& team) {
        float* rows = scratch[team.rank()].data();
        for (size_t i = next++; i < first_bad; i = next++) {
            if (pack(panels_[i], rows, table) == nullptr) continue;
            size_t known = first_bad;
            while (i < known && !first_bad.compare_exchange_weak(known, i)) {
            }
        }
    });
    if (first_bad == panels_.size()) return nullptr;
    return pack(panels_[first_bad], scratch[0].data(), table);
}

// rows: scratch [17][padded(k)]. Returns the first tensor that its packing cannot hold.
const Tensor* Packer::pack(const Panel& panel, float* rows, const KernelTable& kernels) {
    const Matrix& to = *panel.to;
    if (to.packing == Packing::kInt8 && to.group_scales) {
        Int8Rows source{};
        for (int lane = 0; lane < kLanes; ++lane) {
            const auto& from = panel.rows[lane];
            if (from.tensor == nullptr) continue;
            source.values[lane] = from.tensor->data + from.row * to.k;
            source.scales[lane] = from.tensor->scales + from.row * to.groups() * 4;
            if (!all_within(FLT_MAX, source.scales[lane], to.groups())) return from.tensor;
        }
        pack_int8_panel(to, panel.index, source);
        return nullptr;
    }
    const int stride = padded(to.k);
    for (int lane = 0; lane < kLanes; ++lane) {
        float* row = rows + static_cast<size_t>(lane) * stride;
        const auto& from = panel.rows[lane];
        if (from.tensor != nullptr) {
            from.tensor->read_row(from.row, row);
            if (!can_hold(to.packing, row, to.k)) return from.tensor;
        } else {
            std::fill_n(row, to.k, 0.0f);
        }
        std::fill(row + to.k, row + stride, 0.0f);
    }
    pack_panel(to, panel.index, rows, kernels);
    return nullptr;
}

}  // namespace pyllama2c
