// The tables of rotary positions against the C library's, which are as right but not the same
// everywhere.
#include <algorithm>
#include <cmath>

#include "backends/rotary.h"
#include "check.h"

using namespace pyllama2c;

namespace {

void tables_are_right(double theta, int head_size, int positions, int step) {
    RotaryTables tables(theta, head_size, positions);
    tables.fill(positions / 3);
    tables.fill(positions);
    double worst = 0;
    for (int p = 0; p < positions; p += step) {
        for (int i = 0; i < head_size; i += 2) {
            const double angle = p * std::pow(theta, -i / static_cast<double>(head_size));
            const float* cos = tables.cos(p) + i;
            const float* sin = tables.sin(p) + i;
            CHECK(cos[0] == cos[1] && sin[0] == -sin[1]);
            worst = std::max(
                {worst, std::abs(cos[1] - std::cos(angle)), std::abs(sin[1] - std::sin(angle))});
        }
    }
    // Half a unit in the last place of a float just below 1, and what angles of 1e5 lose in double.
    CHECK(worst < 0x1p-25 + 1e-9, "theta " << theta << " head size " << head_size << ": " << worst);
}

}  // namespace

int main() {
    for (const int head_size : {2, 8, 14, 64, 128}) {
        for (const double theta : {1.0, 500.0, 10000.0, 500000.0}) {
            tables_are_right(theta, head_size, 1000, 1);
        }
    }
    tables_are_right(500000.0, 128, 131072, 1001);
    return check::finish("test_rotary");
}
