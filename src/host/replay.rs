//! The command line that repeats a run: variables, the package and how it was built, the one test of the one
//! executable.
//!
//! What a line cannot carry is the source: it repeats the run as long as that is what it was. Kernel and
//! accelerator are filled in by the orchestrator, which decides them.

use std::{env, path::Path};

use super::{
    KtstrTestEntry, Variant,
    spec::{set, target_of, vary},
};

/// The line that repeats a run of this variant.
pub(super) fn replay_of(entry: &KtstrTestEntry, variant: &Variant, seed: u64) -> String {
    let exe = env::current_exe().unwrap_or_default();
    let again = Again {
        vary: vary(),
        set: &set,
        profile: profile_of(&exe).filter(|profile| profile != "debug"),
        executable: Executable::of(&exe, set("NEXTEST_BINARY_ID")),
    };
    replay(entry, &variant.base_name(entry), seed, &again)
}

/// Variables beside kernel, accelerator and seed by which a run goes.
const INPUTS: [&str; 8] = [
    "KTSTR_SCHEDULER",
    "KTSTR_GUEST_ENV",
    "RUST_LOG",
    "KTSTR_SNAPSHOTS",
    "KTSTR_OBSERVE",
    "KTSTR_NO_PERF_MODE",
    "KTSTR_CPU_CAP",
    "KTSTR_JAIL",
];

/// What of this process decides how its runs go.
struct Again<'a> {
    vary: bool,
    set: &'a dyn Fn(&str) -> Option<String>,
    /// The profile it was built with, unless that is the usual one.
    profile: Option<String>,
    executable: Executable,
}

/// Which test executable this is.
#[derive(Debug, Default, PartialEq)]
struct Executable {
    /// Its package, where that is known: a test may stand in a library and run in the executable of another
    /// package.
    package: Option<String>,
    /// What of nextest's filters chooses it among the package's.
    filter: Option<String>,
}

impl Executable {
    /// By the id that nextest gives it (`PACKAGE`, `PACKAGE::NAME` or `PACKAGE::KIND/NAME`), else by its file,
    /// which cargo calls `NAME-HASH`, with `_` for each `-`.
    fn of(exe: &Path, id: Option<String>) -> Self {
        if let Some(id) = id {
            let package = id.split("::").next().map(str::to_owned);
            return Self { package, filter: Some(format!("binary_id(={id})")) };
        }
        let file = exe.file_name().unwrap_or_default().to_string_lossy();
        let hashed = |hash: &str| hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit());
        let name = file.rsplit_once('-').filter(|(_, hash)| hashed(hash)).map(|(name, _)| name);
        let filter = name.map(|name| match name.contains('_') {
            true => format!("binary(/^{}$/)", name.replace('_', "[-_]")),
            false => format!("binary(={name})"),
        });
        Self { package: None, filter }
    }
}

/// The profile of an executable in a target directory, which names the directory below it.
fn profile_of(exe: &Path) -> Option<String> {
    let below = exe.strip_prefix(target_of(exe)?).ok()?;
    let mut parts = below.iter().map(|part| part.to_string_lossy().into_owned());
    // With `--target` the triple comes first.
    parts.find(|part| part.matches('-').count() < 2)
}

/// A word for a shell: in quotes where it is more than a plain one.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:,=+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// The line that repeats the run; the orchestrator fills in kernel and accelerator.
fn replay(entry: &KtstrTestEntry, test: &str, seed: u64, again: &Again<'_>) -> String {
    // What must be asked for to run.
    let ignored = if entry.ignored || test.starts_with("gauntlet/") { " --run-ignored all" } else { "" };
    let given = INPUTS.iter().filter_map(|name| Some(format!("{name}={} ", quoted(&(again.set)(name)?))));
    let given: String = given.collect();
    let vary = if again.vary { "KTSTR_VARY=1 " } else { "" };
    let profile = again.profile.as_ref();
    let profile = profile.map(|profile| format!(" --cargo-profile {}", quoted(profile))).unwrap_or_default();
    let Executable { package, filter } = &again.executable;
    let package = package.as_deref().unwrap_or(entry.package);
    // Features of a library come with those of the package that runs its tests.
    let features = if package == entry.package { entry.features } else { "" };
    let space = if features.is_empty() { "" } else { " " };
    let of_executable = filter.as_ref().map(|filter| format!("{filter} & ")).unwrap_or_default();
    format!(
        "{given}KTSTR_KERNEL={{kernel}} KTSTR_ACCEL={{accel}} KTSTR_SEED={seed} {vary}\
         cargo nextest run{profile} -p {package}{space}{features} -E '{of_executable}test(={test})'{ignored}"
    )
}

#[cfg(test)]
mod tests {
    use ktstr_proto::Topology;

    use super::*;
    use crate::host::{Constraints, tests::entry};

    fn plain() -> Again<'static> {
        Again { vary: false, set: &|_| None, profile: None, executable: Executable::default() }
    }

    #[test]
    fn a_cell_is_replayed_by_its_name_without_the_kernel() {
        let entry = entry("t", Constraints::NONE);
        let shape = Topology { numa_nodes: 1, llcs: 1, cores: 4, threads: 1 };
        let cell = |name: &str, topology, kernel: Option<&str>| {
            let variant = Variant { name: name.into(), topology, kernel: kernel.map(str::to_owned) };
            replay(entry, &variant.base_name(entry), 7, &plain())
        };
        let of_preset = cell("gauntlet/t/4cpu/kernel_6_18", Some(shape), Some("6.18"));
        assert!(of_preset.ends_with("-E 'test(=gauntlet/t/4cpu)' --run-ignored all"), "{of_preset}");
        let of_kernel = cell("ktstr/t/kernel_6_18", None, Some("6.18"));
        assert!(of_kernel.ends_with("-E 'test(=t)'"), "{of_kernel}");
    }

    #[test]
    fn variables_profile_and_features_are_repeated() {
        let entry = KtstrTestEntry {
            features: "--no-default-features --features a,b",
            ..*entry("t", Constraints::NONE)
        };
        let set = |name: &str| match name {
            "KTSTR_SCHEDULER" => Some("/my scx".to_owned()),
            "KTSTR_GUEST_ENV" => Some("A=1,B=2".to_owned()),
            _ => None,
        };
        let executable = Executable::of(Path::new("/x"), Some("p::races".into()));
        let again = Again { vary: true, set: &set, profile: Some("release".into()), executable };
        assert_eq!(
            replay(&entry, "t", 7, &again),
            "KTSTR_SCHEDULER='/my scx' KTSTR_GUEST_ENV=A=1,B=2 KTSTR_KERNEL={kernel} KTSTR_ACCEL={accel} \
             KTSTR_SEED=7 KTSTR_VARY=1 cargo nextest run --cargo-profile release -p p --no-default-features \
             --features a,b -E 'binary_id(=p::races) & test(=t)'"
        );
        let executable = Executable::of(Path::new("/x"), Some("other".into()));
        assert!(
            replay(&entry, "t", 7, &Again { executable, ..plain() })
                .ends_with("cargo nextest run -p other -E 'binary_id(=other) & test(=t)'"),
            "a test of a library runs where it was linked to"
        );
        assert_eq!((quoted("it's"), quoted("")), ("'it'\\''s'".to_owned(), "''".to_owned()));
    }

    #[test]
    fn an_executable_is_known_by_its_id_or_its_file() {
        let by_file = |file: &str| Executable::of(Path::new(file), None).filter;
        assert_eq!(by_file("/t/deps/e2e-0123456789abcdef").as_deref(), Some("binary(=e2e)"));
        assert_eq!(
            by_file("/t/deps/my_races-0123456789abcdef").as_deref(),
            Some("binary(/^my[-_]races$/)"),
            "cargo writes `-` as `_` in names of files"
        );
        assert_eq!(by_file("/bin/my-races"), None);
        let known = Executable::of(Path::new("/t/deps/e2e-0123456789abcdef"), Some("p::bin/e2e".into()));
        assert_eq!(
            (known.package.as_deref(), known.filter.as_deref()),
            (Some("p"), Some("binary_id(=p::bin/e2e)"))
        );
    }
}
