// Zero-initialised, page-aligned memory, backed by huge pages where they pay.
#pragma once

#include <cstddef>
#include <utility>

namespace pyllama2c {

// Untyped pages straight from the kernel: zero until touched, so reserving costs nothing.
class Pages {
  public:
    Pages() = default;
    // Throws CapacityError where the kernel refuses.
    explicit Pages(size_t bytes);
    ~Pages();
    Pages(Pages&& other) noexcept { swap(other); }
    Pages& operator=(Pages&& other) noexcept {
        swap(other);
        return *this;
    }
    Pages(const Pages&) = delete;
    Pages& operator=(const Pages&) = delete;

    void* data() const { return data_; }
    size_t size() const { return size_; }

  private:
    void swap(Pages& other) {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        std::swap(base_, other.base_);
        std::swap(mapped_, other.mapped_);
    }

    void* data_ = nullptr;  // aligned start
    size_t size_ = 0;       // bytes asked for
    void* base_ = nullptr;  // what mmap gave
    size_t mapped_ = 0;
};

template <typename T>
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(size_t count) : pages_(count * sizeof(T)), count_(count) {}

    T* data() const { return static_cast<T*>(pages_.data()); }
    size_t size() const { return count_; }
    T& operator[](size_t i) const { return data()[i]; }

  private:
    Pages pages_;
    size_t count_ = 0;
};

}  // namespace pyllama2c
