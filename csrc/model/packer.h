// Packing on load: a list of panels, each with the rows it is made of, for threads to share.
#pragma once

#include <initializer_list>
#include <vector>

#include "model/matrix.h"
#include "model/tensors.h"

namespace pyllama2c {

class Packer {
  public:
    // W is the rows of the tensors one after another; zeros to the end of the last panel.
    void stack(const Matrix& to, std::initializer_list<const Tensor*> parts);
    // W is panels of a and b in turn, each with zeros to the end of its last panel.
    void interleave(const Matrix& to, const Tensor& a, const Tensor& b);

    // Returns the first tensor with a number that its packing cannot hold; nullptr: there is none.
    const Tensor* run(int n_threads);

  private:
    struct Panel {
        const Matrix* to;
        int index;
        struct {
            const Tensor* tensor;  // nullptr: a row of zeros
            int64_t row;
        } rows[kLanes];
    };

    size_t append_panels(const Matrix& to);
    static const Tensor* pack(const Panel& panel, float* rows, const KernelTable& kernels);

    std::vector<Panel> panels_;
};

}  // namespace pyllama2c
