// A read-only memory map of a whole file.
#pragma once

#include <cstddef>
#include <string>

namespace pyllama2c {

class MappedFile {
  public:
    // Throws CheckpointError where the path cannot be opened, is no regular file or is empty.
    explicit MappedFile(const std::string& path);
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    const unsigned char* data() const { return data_; }
    size_t size() const { return size_; }

  private:
    const unsigned char* data_ = nullptr;
    size_t size_ = 0;
};

}  // namespace pyllama2c
