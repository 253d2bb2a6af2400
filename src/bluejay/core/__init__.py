"""Ground floor: errors, atomic files, hashing. Standard library and NumPy only."""
