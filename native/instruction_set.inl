// Compiled once per instruction set: BLUEJAY_ISA names it, BLUEJAY_TABLE its table.
#include "bandwidth.h"
#include "block_middle.h"
#include "choose.h"
#include "cross_entropy.h"
#include "decoder_block.h"
#include "kernels.h"
#include "layer_norm.h"
#include "matmul.h"
#include "products.h"

namespace bluejay {

using namespace BLUEJAY_ISA;

extern const Kernels BLUEJAY_TABLE;
const Kernels BLUEJAY_TABLE = {
    .name = BLUEJAY_NAME,
    .matmul_float32 = matmul<ProductFloat32>,
#if defined(__AVX512BF16__)
    .matmul_bfloat16 = matmul<ProductBfloat16>,
#else
    .matmul_bfloat16 = nullptr,
#endif
    .layer_norm = layer_norm,
    .layer_norm_backward = layer_norm_backward,
    .cross_entropy = cross_entropy,
    .cross_entropy_backward = cross_entropy_backward,
    .block_middle = block_middle,
    .block_middle_backward = block_middle_backward,
    .multiply_weights = multiply_weights,
    .decoder_block = decoder_block,
    .choose = choose,
    .read_memory = read_memory,
};

}  // namespace bluejay
