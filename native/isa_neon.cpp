#define BLUEJAY_ISA neon
#define BLUEJAY_NAME "neon"
#define BLUEJAY_TABLE k_neon
#include "instruction_set.inl"
