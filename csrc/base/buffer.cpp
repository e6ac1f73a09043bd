#include "base/buffer.h"

#include <sys/mman.h>

#include <cstdint>

#include "base/error.h"

namespace pyllama2c {

namespace {
constexpr size_t kHugePage = size_t{2} << 20;
}

Pages::Pages(size_t bytes) : size_(bytes) {
    if (bytes == 0) return;
    // Weights are read once per token from end to end: with 4 KB pages the walk through the page
    // tables costs 10 to 15 % of the read bandwidth. Small buffers stay as they are.
    const bool huge = bytes >= kHugePage;
    mapped_ = bytes + (huge ? kHugePage : 0);
    base_ = ::mmap(nullptr, mapped_, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base_ == MAP_FAILED) {
        base_ = nullptr;
        throw CapacityError(text("cannot allocate ", bytes, " bytes"));
    }
    uintptr_t start = reinterpret_cast<uintptr_t>(base_);
    if (huge) start = (start + kHugePage - 1) & ~(kHugePage - 1);
    data_ = reinterpret_cast<void*>(start);
    if (huge) ::madvise(data_, bytes, MADV_HUGEPAGE);
}

Pages::~Pages() {
    if (base_ != nullptr) ::munmap(base_, mapped_);
}

}  // namespace pyllama2c
