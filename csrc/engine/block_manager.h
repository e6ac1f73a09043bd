// Who owns which block of the KV cache. Deals in block numbers only, never in KV memory.
//
// A full block is immutable, so it can be shared: it is registered under its 16 tokens and the
// block before it, and a later sequence that begins alike finds it (as vLLM and nano-vllm do). A
// block that nobody holds any more stays findable until its place is needed, least recently used
// first.
#pragma once

#include <array>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

namespace pyllama2c {

class BlockManager {
  public:
    static constexpr int kTokens = 16;
    static constexpr uint64_t kRoot = 0;  // the "block before" of a first block

    // max_cached: with more free blocks to be found than this, one of them is handed out rather
    // than a block that has never been used: memory is only taken for what is worth it.
    explicit BlockManager(int n_blocks, int max_cached = INT_MAX);

    int n_blocks() const { return static_cast<int>(blocks_.size()) - 1; }
    int n_free() const { return n_free_; }      // cached or not: what allocate() can hand out
    int n_cached() const { return n_cached_; }  // of the free ones, those that can still be found

    // A block of one's own, or -1 when all are held.
    int allocate();
    void hold(int block);
    // The caller frees a sequence's blocks last first, so that the tail of a shared text is
    // forgotten before its head.
    void release(int block);

    // The cached block that holds these tokens after `parent`, held for the caller, or -1.
    int find(uint64_t parent, const int32_t* tokens);
    // Makes a full block findable. Returns the block to use from now on: the same one, or, when
    // another sequence has registered the same tokens already, that one (held) in its place (the
    // caller's is released: their contents are equal to the last bit).
    int publish(int block, uint64_t parent, const int32_t* tokens);
    // Identifies a published block for its successors; never reused.
    uint64_t serial(int block) const { return blocks_[block].serial; }

    // Whether the books agree with each other and with how often each block is held.
    bool consistent(const std::vector<int>& holders) const;

  private:
    struct Key {
        uint64_t parent;
        std::array<int32_t, kTokens> tokens;
        bool operator==(const Key& other) const {
            return parent == other.parent && tokens == other.tokens;
        }
    };
    struct Hash {
        size_t operator()(const Key& key) const;
    };
    struct Block {
        int holders = 0;
        uint64_t serial = 0;  // 0: not published
        Key key{};
        int previous = 0, next = 0;  // neighbours in the list of free blocks
    };

    static Key make_key(uint64_t parent, const int32_t* tokens);
    void unlink(int block);
    void link_after(int position, int block);

    std::vector<Block> blocks_;  // the last one is the head of the free list's ring
    std::unordered_map<Key, int, Hash> published_;
    uint64_t last_serial_ = kRoot;
    const int max_cached_;
    int n_used_ = 0;  // those from here on have never been used
    int n_free_ = 0, n_cached_ = 0;
    int head_ = 0;
};

}  // namespace pyllama2c
