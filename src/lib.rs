//! ktstr: tests for Linux process schedulers.
