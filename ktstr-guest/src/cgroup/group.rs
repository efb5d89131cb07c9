//! Cgroups that are removed together, in reverse order of creation, when their owner is done.

use super::{CgroupError, Cgroups};

/// Owns the cgroups it created.
#[derive(Debug)]
pub struct CgroupGroup<'a> {
    cgroups: &'a Cgroups,
    names: Vec<String>,
}

impl<'a> CgroupGroup<'a> {
    /// Owns nothing yet.
    pub fn new(cgroups: &'a Cgroups) -> Self {
        Self { cgroups, names: Vec::new() }
    }

    /// Creates a cgroup and owns it.
    pub fn add(&mut self, name: &str) -> Result<(), CgroupError> {
        self.cgroups.create(name)?;
        self.names.push(name.into());
        Ok(())
    }

    /// The names, in order of creation.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Removes all; the first failure is reported after all were tried.
    pub fn remove(mut self) -> Result<(), CgroupError> {
        self.remove_all()
    }

    fn remove_all(&mut self) -> Result<(), CgroupError> {
        let mut first = Ok(());
        while let Some(name) = self.names.pop() {
            let removed = self.cgroups.remove(&name);
            if first.is_ok() {
                first = removed;
            }
        }
        first
    }
}

impl Drop for CgroupGroup<'_> {
    fn drop(&mut self) {
        // A failure here follows another one that is being reported.
        let _ = self.remove_all();
    }
}
