"""Native operations: C++ through XLA's foreign functions on CPU, with a reference for every one."""
