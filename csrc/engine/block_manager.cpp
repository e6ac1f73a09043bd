#include "engine/block_manager.h"

#include <algorithm>

namespace pyllama2c {

// The ring of free blocks: those worth nothing, those never used, those that can be found.
BlockManager::BlockManager(int n_blocks, int max_cached)
    : blocks_(n_blocks + 1), max_cached_(max_cached), n_free_(n_blocks), head_(n_blocks) {
    for (int i = 0; i <= n_blocks; ++i) {
        blocks_[i].next = i == n_blocks ? 0 : i + 1;
        blocks_[i].previous = i == 0 ? n_blocks : i - 1;
    }
}

void BlockManager::unlink(int block) {
    blocks_[blocks_[block].previous].next = blocks_[block].next;
    blocks_[blocks_[block].next].previous = blocks_[block].previous;
}

void BlockManager::link_after(int position, int block) {
    const int next = blocks_[position].next;
    blocks_[block].previous = position;
    blocks_[block].next = next;
    blocks_[position].next = block;
    blocks_[next].previous = block;
}

int BlockManager::allocate() {
    if (n_free_ == 0) return -1;
    int block = blocks_[head_].next;
    if (block >= n_used_) {
        if (n_cached_ > max_cached_) {
            block = blocks_[n_blocks() - 1].next;  // the first that can be found
        } else {
            ++n_used_;
        }
    }
    hold(block);
    if (blocks_[block].serial != 0) {
        published_.erase(blocks_[block].key);
        blocks_[block].serial = 0;
    }
    return block;
}

void BlockManager::hold(int block) {
    if (blocks_[block].holders++ == 0) {
        unlink(block);
        --n_free_;
        n_cached_ -= blocks_[block].serial != 0;
    }
}

void BlockManager::release(int block) {
    if (--blocks_[block].holders > 0) return;
    // Blocks worth nothing are handed out first (front), findable ones in the order of their last
    // use (back).
    link_after(blocks_[block].serial == 0 ? head_ : blocks_[head_].previous, block);
    ++n_free_;
    n_cached_ += blocks_[block].serial != 0;
}

BlockManager::Key BlockManager::make_key(uint64_t parent, const int32_t* tokens) {
    Key key;
    key.parent = parent;
    std::copy(tokens, tokens + kTokens, key.tokens.begin());
    return key;
}

size_t BlockManager::Hash::operator()(const Key& key) const {
    uint64_t hash = key.parent + 0x9E3779B97F4A7C15ull;
    for (const int32_t token : key.tokens) {
        hash = (hash ^ static_cast<uint32_t>(token)) * 0xFF51AFD7ED558CCDull;
        hash ^= hash >> 32;
    }
    return hash;
}

int BlockManager::find(uint64_t parent, const int32_t* tokens) {
    const auto found = published_.find(make_key(parent, tokens));
    if (found == published_.end()) return -1;
    hold(found->second);
    return found->second;
}

int BlockManager::publish(int block, uint64_t parent, const int32_t* tokens) {
    const Key key = make_key(parent, tokens);
    const auto [entry, is_new] = published_.emplace(key, block);
    if (is_new) {
        blocks_[block].serial = ++last_serial_;
        blocks_[block].key = key;
        return block;
    }
    if (entry->second != block) {
        hold(entry->second);
        release(block);
    }
    return entry->second;
}

bool BlockManager::consistent(const std::vector<int>& holders) const {
    size_t n_held = 0, n_findable = 0, n_cached = 0, n_listed = 0;
    for (int i = 0; i < n_blocks(); ++i) {
        const Block& block = blocks_[i];
        if (block.holders != holders[i]) return false;
        n_held += block.holders > 0;
        if (block.serial == 0) continue;
        ++n_findable;
        n_cached += block.holders == 0;
        const auto found = published_.find(block.key);
        if (found == published_.end() || found->second != i) return false;
    }
    for (int i = blocks_[head_].next; i != head_; i = blocks_[i].next) {
        if (blocks_[i].holders > 0 || blocks_[blocks_[i].next].previous != i) return false;
        if (++n_listed > blocks_.size()) return false;
    }
    const size_t n = n_blocks(), n_free = n_free_;
    return n_listed == n_free && n_held + n_free == n && n_findable == published_.size() &&
           n_cached == static_cast<size_t>(n_cached_);
}

}  // namespace pyllama2c
