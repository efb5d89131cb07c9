//! With which features the package is built whose source is expanded: no executable can ask for them later.
//!
//! Cargo tells them to the compiler, and this runs in the compiler: `--cfg 'feature="x"'` names each that is
//! on, `--check-cfg 'cfg(feature, values("x", "y"))'` all that there are. Where somebody else expands, as an
//! editor does, none are told and none are said.

/// Words for cargo that build the package with the same features; none for the usual ones.
pub(crate) fn words() -> String {
    of(std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()))
}

fn of(args: impl Iterator<Item = String>) -> String {
    let (mut on, mut default_declared) = (Vec::new(), false);
    for arg in args {
        let cfg = arg.strip_prefix("--cfg=").unwrap_or(&arg);
        let feature = cfg.strip_prefix("feature=\"").and_then(|rest| rest.strip_suffix('"'));
        on.extend(feature.map(str::to_owned));
        let check = arg.strip_prefix("--check-cfg=").unwrap_or(&arg);
        default_declared |= check.starts_with("cfg(feature,") && check.contains("\"default\"");
    }
    let by_default = on.iter().any(|feature| feature == "default");
    on.retain(|feature| feature != "default");
    on.sort();
    on.dedup();
    let mut words = Vec::new();
    if default_declared && !by_default {
        words.push("--no-default-features".to_owned());
    }
    if !on.is_empty() {
        words.push(format!("--features {}", on.join(",")));
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    fn words(args: &[&str]) -> String {
        super::of(args.iter().map(|arg| (*arg).to_owned()))
    }

    #[test]
    fn what_the_compiler_is_told_is_told_to_cargo_again() {
        let declared =
            ["--check-cfg", "cfg(docsrs,test)", "--check-cfg", "cfg(feature, values(\"a\", \"default\"))"];
        let with = |cfgs: &[&'static str]| words(&[&declared[..], cfgs].concat());
        assert_eq!(with(&["--cfg", "feature=\"default\""]), "");
        assert_eq!(with(&[]), "--no-default-features");
        assert_eq!(
            with(&["--cfg", "feature=\"b\"", "--cfg=feature=\"a\""]),
            "--no-default-features --features a,b"
        );
        let without_default = ["--check-cfg", "cfg(feature, values(\"a\"))", "--cfg", "feature=\"a\""];
        assert_eq!(words(&without_default), "--features a");
        assert_eq!(words(&["rustc", "--cfg", "test", "src/lib.rs"]), "");
    }
}
