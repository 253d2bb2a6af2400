#define BLUEJAY_ISA portable
#define BLUEJAY_NAME "portable"
#define BLUEJAY_TABLE k_portable
#include "instruction_set.inl"
