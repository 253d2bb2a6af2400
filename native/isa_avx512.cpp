#define BLUEJAY_ISA avx512
#define BLUEJAY_NAME "avx512"
#define BLUEJAY_TABLE k_avx512
#include "instruction_set.inl"
