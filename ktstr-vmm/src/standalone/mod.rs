//! `ktstr-vmm shell`: a machine without an orchestrator, for a look around or one command.
//!
//! [`options`] is the command line, [`shell`] the run, [`archive`] the job handed to PID 1. It keeps
//! no run directory and judges nothing; that is the orchestrator's work.

pub mod archive;
pub mod options;
pub mod shell;
