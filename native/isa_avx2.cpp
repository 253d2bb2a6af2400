#define BLUEJAY_ISA avx2
#define BLUEJAY_NAME "avx2"
#define BLUEJAY_TABLE k_avx2
#include "instruction_set.inl"
