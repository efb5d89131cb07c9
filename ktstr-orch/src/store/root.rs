//! Where the kernel store lies on this machine.
//!
//! Reads three environment variables and nothing else; it creates no
//! directory. [`super::Store::open`] does.

use std::ffi::OsString;
use std::path::PathBuf;

/// Why no place for the store could be named.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RootError {
    /// None of the three variables gives a place.
    #[error(
        "no place for the kernel cache: HOME is {home}; set HOME, or XDG_CACHE_HOME to a cache \
         directory, or KTSTR_CACHE_DIR to the directory that shall hold the kernels"
    )]
    NoHome {
        /// `unset` or `empty`.
        home: &'static str,
    },
    /// A variable that must be absolute is not.
    #[error("{variable}={value:?} is not an absolute path; give one that starts with '/'")]
    Relative {
        /// The variable's name.
        variable: &'static str,
        /// Its value.
        value: OsString,
    },
}

/// The store's directory: `$KTSTR_CACHE_DIR` verbatim, else
/// `$XDG_CACHE_HOME/ktstr/kernels`, else `$HOME/.cache/ktstr/kernels`.
///
/// `lookup` reads an environment variable; an empty value counts as unset.
pub fn store_root(lookup: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, RootError> {
    let set = |name: &str| lookup(name).filter(|value| !value.is_empty());
    if let Some(dir) = set("KTSTR_CACHE_DIR") {
        return Ok(PathBuf::from(dir));
    }
    if let Some(value) = set("XDG_CACHE_HOME") {
        return absolute("XDG_CACHE_HOME", value).map(|dir| dir.join("ktstr/kernels"));
    }
    match set("HOME") {
        Some(value) => absolute("HOME", value).map(|dir| dir.join(".cache/ktstr/kernels")),
        None => Err(RootError::NoHome { home: if lookup("HOME").is_some() { "empty" } else { "unset" } }),
    }
}

fn absolute(variable: &'static str, value: OsString) -> Result<PathBuf, RootError> {
    let path = PathBuf::from(&value);
    if path.is_absolute() { Ok(path) } else { Err(RootError::Relative { variable, value }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(vars: &[(&str, &str)]) -> Result<PathBuf, RootError> {
        store_root(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v)))
    }

    #[test]
    fn order_of_the_variables() {
        let all = [("HOME", "/h"), ("XDG_CACHE_HOME", "/x"), ("KTSTR_CACHE_DIR", "rel/k")];
        assert_eq!(root(&all).unwrap(), PathBuf::from("rel/k"), "verbatim, even when relative");
        assert_eq!(root(&all[..2]).unwrap(), PathBuf::from("/x/ktstr/kernels"));
        assert_eq!(root(&all[..1]).unwrap(), PathBuf::from("/h/.cache/ktstr/kernels"));
    }

    #[test]
    fn empty_variables_count_as_unset() {
        let vars = [("HOME", "/h"), ("XDG_CACHE_HOME", ""), ("KTSTR_CACHE_DIR", "")];
        assert_eq!(root(&vars).unwrap(), PathBuf::from("/h/.cache/ktstr/kernels"));
    }

    #[test]
    fn no_home_names_every_fix() {
        assert_eq!(root(&[]).unwrap_err(), RootError::NoHome { home: "unset" });
        let text = root(&[("HOME", "")]).unwrap_err().to_string();
        for word in ["empty", "HOME", "XDG_CACHE_HOME", "KTSTR_CACHE_DIR"] {
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn relative_home_is_refused() {
        assert!(matches!(root(&[("HOME", "h")]), Err(RootError::Relative { variable: "HOME", .. })));
    }
}
