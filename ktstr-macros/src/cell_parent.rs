//! A scheduler's own `--cell-parent-cgroup PATH`, as a literal among its arguments: the same rules as for
//! `cgroup_parent`. `ktstr::host` has them for what is no literal.

use syn::{Error, LitStr, Result};

/// The option, with its path after a blank or after `=`.
const OPTION: &str = "--cell-parent-cgroup";

/// Refuses paths that name no cgroup below the root, and such that differ from the `parent` that is declared. `key` is
/// the list that the arguments stand in.
pub fn check(key: &str, args: &[&LitStr], parent: Option<&str>) -> Result<()> {
    for (at, arg) in args.iter().enumerate() {
        let text = arg.value();
        let (path, place) = match text.strip_prefix(OPTION) {
            Some("") => match args.get(at + 1) {
                Some(next) => (next.value(), next),
                None => {
                    let message =
                        format!("`{OPTION}` in `{key}` has no path after it: add one, `\"/cells\"`");
                    return Err(Error::new(arg.span(), message));
                }
            },
            Some(rest) => match rest.strip_prefix('=') {
                Some(path) => (path.to_owned(), arg),
                None => continue,
            },
            None => continue,
        };
        if !below_the_root(&path) {
            let message = format!(
                "the path of `{OPTION}` begins with `/`, is not `/` itself and has no `..` in it: `{path}` cannot be it"
            );
            return Err(Error::new(place.span(), message));
        }
        if let Some(parent) =
            parent.filter(|parent| parent.trim_end_matches('/') != path.trim_end_matches('/'))
        {
            let message = format!(
                "`{OPTION} {path}` and `cgroup_parent = \"{parent}\"` are two cgroups: the workers would be in one, \
                 and the scheduler's cells below the other; say the same twice"
            );
            return Err(Error::new(place.span(), message));
        }
    }
    Ok(())
}

/// Whether this is an absolute path of a cgroup that is not the root.
pub fn below_the_root(path: &str) -> bool {
    path.starts_with('/')
        && path.split('/').any(|part| !part.is_empty())
        && path.split('/').all(|part| part != "..")
}
