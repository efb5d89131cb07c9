//! Programs of an object file.
