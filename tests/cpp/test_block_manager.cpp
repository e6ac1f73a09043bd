// Blocks are handed out once, shared where their content is the same, and never lost.
#include "engine/block_manager.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>

#include "check.h"
#include "random.h"

using namespace pyllama2c;

namespace {

using Tokens = std::array<int32_t, BlockManager::kTokens>;

Tokens block_of(int32_t first) {
    Tokens tokens;
    for (int i = 0; i < BlockManager::kTokens; ++i) tokens[i] = first + i;
    return tokens;
}

void hands_out_each_block_once() {
    BlockManager blocks(5);
    std::set<int> seen;
    for (int i = 0; i < 5; ++i) {
        CHECK(blocks.n_free() == 5 - i);
        const int block = blocks.allocate();
        CHECK(block >= 0 && block < 5);
        seen.insert(block);
    }
    CHECK(seen.size() == 5);
    CHECK(blocks.allocate() == -1);
    blocks.release(*seen.begin());
    CHECK(blocks.allocate() == *seen.begin());
}

// Memory that has never been used is left alone while enough of what was used can be found.
void takes_no_more_than_is_worth_it() {
    BlockManager blocks(100, 3);
    std::set<int> seen;
    for (int i = 0; i < 50; ++i) {
        const Tokens tokens = block_of(20 * i);
        const int a = blocks.allocate(), b = blocks.allocate();
        seen.insert({a, b});
        blocks.release(b);
        blocks.release(blocks.publish(a, BlockManager::kRoot, tokens.data()));
        CHECK(blocks.n_cached() == std::min(i + 1, 4));
    }
    CHECK(seen.size() <= 6, seen.size());
    std::set<int> held;
    for (int i = 0; i < 100; ++i) held.insert(blocks.allocate());  // there where they are needed
    CHECK(held.size() == 100 && blocks.allocate() == -1);
}

void finds_what_was_published() {
    BlockManager blocks(4);
    const Tokens first = block_of(0), second = block_of(100);
    const int a = blocks.allocate(), b = blocks.allocate();
    CHECK(blocks.publish(a, BlockManager::kRoot, first.data()) == a);
    CHECK(blocks.publish(b, blocks.serial(a), second.data()) == b);
    CHECK(blocks.find(BlockManager::kRoot, second.data()) == -1);  // right tokens, wrong place
    CHECK(blocks.find(blocks.serial(a), second.data()) == b);
    blocks.release(b);
    blocks.release(b);
    blocks.release(a);
    CHECK(blocks.n_free() == 4);
    CHECK(blocks.find(BlockManager::kRoot, first.data()) == a);  // still findable
    CHECK(blocks.n_free() == 3);
}

void equal_blocks_become_one() {
    BlockManager blocks(4);
    const Tokens tokens = block_of(7);
    const int a = blocks.allocate(), b = blocks.allocate();
    CHECK(blocks.publish(a, BlockManager::kRoot, tokens.data()) == a);
    CHECK(blocks.publish(b, BlockManager::kRoot, tokens.data()) == a);
    CHECK(blocks.n_free() == 3);
    blocks.release(a);
    CHECK(blocks.n_free() == 3);
    blocks.release(a);
    CHECK(blocks.n_free() == 4);
}

void forgets_the_least_recently_used_first() {
    BlockManager blocks(3);
    int held[3];
    for (int i = 0; i < 3; ++i) {
        held[i] = blocks.allocate();
        blocks.publish(held[i], BlockManager::kRoot, block_of(100 * i).data());
    }
    for (const int i : {1, 0, 2}) blocks.release(held[i]);
    blocks.allocate();
    CHECK(blocks.find(BlockManager::kRoot, block_of(100).data()) == -1);  // 1 went first
    CHECK(blocks.find(BlockManager::kRoot, block_of(0).data()) == held[0]);
    CHECK(blocks.find(BlockManager::kRoot, block_of(200).data()) == held[2]);
}

// A new owner of a block must not inherit the links to it: serials are never reused.
void a_forgotten_block_takes_its_successors_along() {
    BlockManager blocks(2);
    const int a = blocks.allocate(), b = blocks.allocate();
    blocks.publish(a, BlockManager::kRoot, block_of(0).data());
    const uint64_t serial = blocks.serial(a);
    blocks.publish(b, serial, block_of(50).data());
    blocks.release(a);
    const int again = blocks.allocate();
    CHECK(again == a);
    blocks.publish(again, BlockManager::kRoot, block_of(300).data());
    CHECK(blocks.serial(again) != serial);
    CHECK(blocks.find(blocks.serial(again), block_of(50).data()) == -1);
}

// Any order of events against a plain model of who holds what.
void never_leaks_or_frees_twice() {
    Random random(3);
    for (int round = 0; round < 50; ++round) {
        const int n_blocks = random.between(1, 20);
        BlockManager blocks(n_blocks, random.chance(0.5) ? random.between(0, 5) : INT_MAX);
        std::map<int, int> holders;
        std::map<int, Tokens> contents;  // of published blocks
        const auto n_held = [&] {
            return std::count_if(holders.begin(), holders.end(),
                                 [](const auto& entry) { return entry.second > 0; });
        };
        for (int event = 0; event < 2000; ++event) {
            const int kind = random.between(0, 3);
            if (kind == 0) {
                const int block = blocks.allocate();
                CHECK((block < 0) == (n_held() == n_blocks));
                if (block >= 0) {
                    CHECK(holders[block] == 0);
                    holders[block] = 1;
                    contents.erase(block);
                }
            } else if (kind == 1 && n_held() > 0) {
                auto entry = holders.begin();
                std::advance(entry, random.between(0, static_cast<int>(holders.size()) - 1));
                if (entry->second > 0) {
                    blocks.release(entry->first);
                    --entry->second;
                }
            } else if (kind == 2) {
                const Tokens tokens = block_of(random.between(0, 12));
                const int block = blocks.find(BlockManager::kRoot, tokens.data());
                if (block >= 0) {
                    CHECK(contents.at(block) == tokens);
                    ++holders[block];
                }
            } else if (n_held() > 0) {
                auto entry = holders.begin();
                std::advance(entry, random.between(0, static_cast<int>(holders.size()) - 1));
                const int block = entry->first;
                if (entry->second != 1 || contents.count(block)) continue;
                const Tokens tokens = block_of(random.between(0, 12));
                const int shared = blocks.publish(block, BlockManager::kRoot, tokens.data());
                if (shared == block) {
                    for (const auto& [other, content] : contents) CHECK(content != tokens, other);
                    contents[block] = tokens;
                } else {
                    CHECK(contents.at(shared) == tokens);
                    --holders[block];
                    ++holders[shared];
                }
            }
            CHECK(blocks.n_free() == n_blocks - n_held());
        }
        for (const auto& [block, times] : holders) {
            for (int i = 0; i < times; ++i) blocks.release(block);
        }
        CHECK(blocks.n_free() == n_blocks);
        for (int i = 0; i < n_blocks; ++i) CHECK(blocks.allocate() >= 0);
        CHECK(blocks.allocate() == -1);
    }
}

}  // namespace

int main() {
    hands_out_each_block_once();
    takes_no_more_than_is_worth_it();
    finds_what_was_published();
    equal_blocks_become_one();
    forgets_the_least_recently_used_first();
    a_forgotten_block_takes_its_successors_along();
    never_leaks_or_frees_twice();
    return check::finish("test_block_manager");
}
