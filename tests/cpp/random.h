// Random numbers for tests: the same on every machine for a seed.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

class Random {
  public:
    explicit Random(uint64_t seed) : engine_(seed) {}

    uint64_t bits() { return engine_(); }
    // least <= result <= most
    int between(int least, int most) {
        return least + static_cast<int>(bits() % (static_cast<uint64_t>(most - least) + 1));
    }
    bool chance(double probability) { return unit() < probability; }
    double unit() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
    float value(float least, float most) {
        return least + static_cast<float>(unit()) * (most - least);
    }
    std::vector<float> values(size_t n, float least = -1, float most = 1) {
        std::vector<float> result(n);
        for (float& x : result) x = value(least, most);
        return result;
    }

  private:
    std::mt19937_64 engine_;
};
