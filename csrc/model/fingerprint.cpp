#include "model/fingerprint.h"

#include <cstring>

namespace pyllama2c {

namespace {

// Eight lanes side by side, so that multiplications overlap and memory is what it waits for.
class Hash {
  public:
    void add(const void* data, size_t size) {
        const char* bytes = static_cast<const char*>(data);
        for (; size >= sizeof(lanes_); bytes += sizeof(lanes_), size -= sizeof(lanes_)) {
            mix(bytes);
        }
        char rest[sizeof(lanes_)] = {};
        std::memcpy(rest, bytes, size);
        mix(rest);
    }

    template <typename T>
    void add(T value) {
        add(&value, sizeof(value));
    }

    uint64_t value() const {
        uint64_t hash = 0;
        for (const uint64_t lane : lanes_) {
            hash = (hash ^ lane) * 0xFF51AFD7ED558CCDull;
            hash ^= hash >> 32;
        }
        return hash;
    }

  private:
    void mix(const char* bytes) {
        for (int i = 0; i < 8; ++i) {
            uint64_t word;
            std::memcpy(&word, bytes + 8 * i, 8);
            // The shift brings what the multiplication moved up back down.
            const uint64_t product = (lanes_[i] ^ word) * 0x9E3779B97F4A7C15ull;
            lanes_[i] = product ^ product >> 29;
        }
    }

    uint64_t lanes_[8] = {1, 2, 3, 4, 5, 6, 7, 8};
};

}  // namespace

uint64_t fingerprint(const Weights& weights) {
    const ModelConfig& c = weights.config();
    Hash hash;
    for (const int size : {c.dim, c.hidden_dim, c.n_layers, c.n_heads, c.n_kv_heads, c.vocab_size,
                           c.max_seq_len, static_cast<int>(c.tied_embeddings),
                           static_cast<int>(weights.type()), weights.file_group()}) {
        hash.add(size);
    }
    hash.add(c.rope_theta);
    hash.add(c.norm_eps);
    hash.add(weights.image(), weights.nbytes());
    return hash.value();
}

}  // namespace pyllama2c
