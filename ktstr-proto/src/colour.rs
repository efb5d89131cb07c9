//! Whether what people read is coloured: one rule for tests and commands.

/// Whether it is, by the variables that people set for it (`set` gives those that are not empty), else by
/// whether it goes to a terminal that knows colours.
pub fn wanted(set: impl Fn(&str) -> Option<String>, terminal: bool) -> bool {
    let is = |name: &str, value: &str| set(name).as_deref() == Some(value);
    if set("NO_COLOR").is_some() || is("KTSTR_COLOR", "never") || is("CARGO_TERM_COLOR", "never") {
        return false;
    }
    let forced = |name: &str| set(name).is_some_and(|value| value != "0");
    is("KTSTR_COLOR", "always")
        || is("CARGO_TERM_COLOR", "always")
        || forced("FORCE_COLOR")
        || forced("CLICOLOR_FORCE")
        || terminal && set("CI").is_none() && set("TERM").is_some_and(|term| term != "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variables_decide_then_the_terminal() {
        let wants = |set: &[(&str, &str)], terminal| {
            let value = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
            wanted(value, terminal)
        };
        let xterm = ("TERM", "xterm");
        assert!(wants(&[xterm], true) && !wants(&[xterm], false) && !wants(&[("TERM", "dumb")], true));
        assert!(!wants(&[xterm, ("CI", "1")], true) && !wants(&[xterm, ("NO_COLOR", "1")], true));
        assert!(
            wants(&[("KTSTR_COLOR", "always")], false) && !wants(&[xterm, ("KTSTR_COLOR", "never")], true)
        );
        assert!(wants(&[("FORCE_COLOR", "1")], false) && !wants(&[("FORCE_COLOR", "0")], false));
        assert!(wants(&[("CARGO_TERM_COLOR", "always"), ("CI", "1")], false));
        assert!(!wants(&[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")], true));
    }
}
