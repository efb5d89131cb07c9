//! A scheduler's own `--cell-parent-cgroup PATH`: the cgroup below which it makes cells. The macros refuse literals
//! that cannot be; this is for schedulers built as constants, and for what only test and scheduler together show.

/// The option, with its path after a blank or after `=`.
const OPTION: &str = "--cell-parent-cgroup";

/// What is wrong with such an option among `args` of a scheduler that declares `parent`, and what to write instead.
pub(crate) fn objection(args: &[&str], parent: Option<&str>) -> Option<String> {
    args.iter().enumerate().find_map(|(at, arg)| {
        let path = match arg.strip_prefix(OPTION)? {
            "" => match args.get(at + 1) {
                Some(path) => path,
                None => return Some(format!("is given `{OPTION}` without a path: add one, `\"/cells\"`")),
            },
            rest => rest.strip_prefix('=')?,
        };
        if !below_the_root(path) {
            return Some(format!(
                "is given `{OPTION} {path}`: the path begins with `/`, is not `/` itself and has no `..` in it"
            ));
        }
        let same = |parent: &&str| parent.trim_end_matches('/') == path.trim_end_matches('/');
        let parent = parent.filter(|parent| !same(parent))?;
        Some(format!(
            "is given `{OPTION} {path}`, and its `cgroup_parent` is `{parent}`: the workers would be in one cgroup and \
             its cells below the other; say the same twice"
        ))
    })
}

/// Whether this is an absolute path of a cgroup that is not the root.
pub(crate) fn below_the_root(path: &str) -> bool {
    path.starts_with('/')
        && path.split('/').any(|part| !part.is_empty())
        && path.split('/').all(|part| part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_looked_at() {
        for (args, parent, part) in [
            (
                &["-v", "--cell-parent-cgroup", "cells"][..],
                None,
                "`--cell-parent-cgroup cells`: the path begins",
            ),
            (&["--cell-parent-cgroup=/"], None, "is not `/` itself"),
            (&["--cell-parent-cgroup=//"], None, "is not `/` itself"),
            (&["--cell-parent-cgroup", "/a/../b"], None, "has no `..`"),
            (&["--cell-parent-cgroup="], None, "the path begins"),
            (&["--cell-parent-cgroup"], None, "without a path"),
            (&["--cell-parent-cgroup=/a"], Some("/b"), "its `cgroup_parent` is `/b`"),
            (
                &["--cell-parent-cgroup=/a", "--cell-parent-cgroup", "/b"],
                Some("/a"),
                "`--cell-parent-cgroup /b`, and",
            ),
        ] {
            let said = objection(args, parent).unwrap_or_else(|| panic!("{args:?} was taken"));
            assert!(said.contains(part), "`{part}` is not in: {said}");
        }
        assert_eq!(objection(&["--cell-parent-cgroup", "/a/"], Some("/a")), None);
        assert_eq!(objection(&["--cell-parent-cgroup=/a"], None), None);
        assert_eq!(objection(&["--cell-parent-cgroups", "x", "-v"], Some("/a")), None);
    }
}
