//! What of the work types differs between processors: the multiplications of `AluHot`.
//!
//! Written in assembly, so that the registers and the instructions per round are the same whatever the
//! compiler and its optimisation.

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub(super) use x86_64::{leave, multiplier};

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "aarch64")]
pub(super) use aarch64::{leave, multiplier};

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod portable;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) use portable::{leave, multiplier};
