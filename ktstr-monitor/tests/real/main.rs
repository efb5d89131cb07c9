//! The monitor on real kernels, emulated: `scx-ktstr --plant` plants facts, and what is read from
//! outside must equal them, field by field. One boot per kernel; the guest is not stopped, because
//! planted values do not change.

mod facts;
mod guest;
mod hidden;
mod levels;
mod object;
mod planted;
