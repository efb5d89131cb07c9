//! Procedural macros of ktstr.
