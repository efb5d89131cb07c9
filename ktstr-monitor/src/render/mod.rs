//! Bytes with a type, as something to look at.
//!
//! ```text
//! bytes + TypeRef ── Renderer ──▶ Value ──▶ text (people)
//!                       │           └─────▶ JSON (machines)
//!                     Deref: where pointers lead, and which numbers are pointers
//! ```
//!
//! A [`Value`] says everything that was there: runs of equal elements are written once with their
//! count, and what a limit left out is counted where it is missing. Nothing is cut off silently.

mod build;
mod json;
mod text;
mod value;

pub use build::{Cast, Deref, Found, NoDeref, Options, Renderer, Space, may_hide_pointer};
pub use json::to_json;
pub use text::to_text;
pub use value::{Pointer, Run, Target, Value};
