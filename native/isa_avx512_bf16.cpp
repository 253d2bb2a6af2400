#define BLUEJAY_ISA avx512_bf16
#define BLUEJAY_NAME "avx512_bf16"
#define BLUEJAY_TABLE k_avx512_bf16
#include "instruction_set.inl"
