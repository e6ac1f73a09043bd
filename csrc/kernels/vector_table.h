// Everything that is written over a vector of 16 floats, and the table of it; the ISAs' files end
// by including this one.

#include "kernels/vector_kernels.h"

#include "kernels/vector_attention.h"
#include "kernels/vector_attention8.h"
#include "kernels/vector_int4.h"
#include "kernels/vector_matmul.h"

constexpr KernelTable vector_table(const char* isa) {
    return {
        isa,
        matmul_f32,
        matmul_bf16,
        matmul_q8,
        matmul_q4,
        quantize,
        quantize_int4,
        rmsnorm,
        rope,
        swiglu,
        {store_key<KvF32>, store_key<KvF16>, store_key8},
        {store_value<KvF32>, store_value<KvF16>, store_value8},
        {attend<KvF32>, attend<KvF16>, attend8},
        softmax,
    };
}
