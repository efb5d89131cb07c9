//! The cells of a gauntlet: which there are and what they are called.

use ktstr_proto::topology::{PRESETS, Preset};

use crate::host::{Constraints, KtstrTestEntry, Variant};

/// One test on one machine and kernel.
#[derive(Debug, Clone)]
pub struct Cell {
    /// The test.
    pub entry: &'static KtstrTestEntry,
    /// What differs from the test as declared.
    pub variant: Variant,
    /// Whether it only runs when asked for.
    pub ignored: bool,
}

/// A kernel of a run over several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedKernel {
    /// As the user named it.
    pub named: String,
    /// What the orchestrator is asked for.
    pub selector: String,
}

impl NamedKernel {
    /// `NAME=SELECTOR`, or one text that is both.
    pub fn parse(text: &str) -> Self {
        let (named, selector) = text.rsplit_once('=').unwrap_or((text, text));
        Self { named: named.into(), selector: selector.into() }
    }
}

/// All cells of these tests on machines of this architecture; more than one kernel makes a dimension. A test that
/// runs on this host has none, whatever the kernels.
pub fn cells(
    entries: impl IntoIterator<Item = &'static KtstrTestEntry>,
    kernels: &[NamedKernel],
) -> Vec<Cell> {
    cells_on(std::env::consts::ARCH, entries, kernels)
}

/// As [`cells`], for an architecture by its name.
fn cells_on(
    architecture: &str,
    entries: impl IntoIterator<Item = &'static KtstrTestEntry>,
    kernels: &[NamedKernel],
) -> Vec<Cell> {
    let kernels = labelled(kernels);
    let on_machines = entries.into_iter().filter(|entry| !entry.host_only);
    let mut all: Vec<Cell> = on_machines.flat_map(|entry| cells_of(architecture, entry, &kernels)).collect();
    all.sort_by(|a, b| a.variant.name.cmp(&b.variant.name));
    all
}

fn cells_of(
    architecture: &str,
    entry: &'static KtstrTestEntry,
    kernels: &[(String, NamedKernel)],
) -> Vec<Cell> {
    let test = entry.full_name();
    let several = kernels.len() > 1;
    let named: Vec<Option<&(String, NamedKernel)>> =
        if several { kernels.iter().map(Some).collect() } else { vec![None] };
    let cell = |name: String, preset: Option<&Preset>, kernel: Option<&(String, NamedKernel)>| Cell {
        entry,
        variant: Variant {
            name: kernel.map_or(name.clone(), |(label, _)| format!("{name}/{label}")),
            topology: preset.map(|preset| preset.topology),
            kernel: kernel.map(|(_, kernel)| kernel.selector.clone()),
        },
        ignored: entry.ignored || preset.is_some(),
    };
    let own = named.iter().filter(|_| several).map(|kernel| cell(format!("ktstr/{test}"), None, *kernel));
    let bounds = Constraints::of_test(entry.bounds());
    let there = PRESETS.iter().filter(|preset| architecture != "aarch64" || preset.on_aarch64());
    let admitted = there.filter(|preset| bounds.admit(&preset.topology));
    let varied = admitted.flat_map(|preset| {
        let name = format!("gauntlet/{test}/{}", preset.name);
        named.iter().map(move |kernel| (name.clone(), preset, *kernel))
    });
    own.chain(varied.map(|(name, preset, kernel)| cell(name, Some(preset), kernel))).collect()
}

/// Each kernel with its label; of two that would have the same label, each is told by its own name.
fn labelled(kernels: &[NamedKernel]) -> Vec<(String, NamedKernel)> {
    let mut unique: Vec<NamedKernel> = Vec::new();
    for kernel in kernels {
        if !unique.contains(kernel) {
            unique.push(kernel.clone());
        }
    }
    let labels: Vec<String> = unique.iter().map(|kernel| kernel_label(&kernel.named)).collect();
    let again = |label: &String| labels.iter().filter(|other| *other == label).count() > 1;
    let whole = |(label, kernel): (&String, NamedKernel)| match again(label) {
        true => (format!("{label}_{}", hash6(&kernel.named)), kernel),
        false => (label.clone(), kernel),
    };
    labels.iter().zip(unique).map(whole).collect()
}

/// A kernel as part of a test's name: `7.2` is `kernel_7_2`, a file is told by its name and six digits
/// of its whole path, since many are called `bzImage`.
pub fn kernel_label(kernel: &str) -> String {
    let path = kernel.trim_end_matches('/');
    let name = path.rsplit('/').next().unwrap_or(kernel);
    let safe: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect();
    if path.contains('/') { format!("kernel_path_{safe}_{}", hash6(path)) } else { format!("kernel_{safe}") }
}

/// Six hexadecimal digits of FNV-1a: the same on every machine.
fn hash6(text: &str) -> String {
    let mix = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    format!("{:06x}", text.bytes().fold(0x811c_9dc5, mix) & 0xff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests::entry;

    fn names(entry: &'static KtstrTestEntry, kernels: &[&str]) -> Vec<String> {
        let kernels: Vec<NamedKernel> = kernels.iter().map(|k| NamedKernel::parse(k)).collect();
        cells([entry], &kernels).into_iter().map(|cell| cell.variant.name).collect()
    }

    #[test]
    fn a_test_is_run_on_the_presets_it_admits() {
        let small = Constraints { max_cpus: Some(4), ..Constraints::NONE };
        let names = names(entry("a::t", small), &[]);
        assert_eq!(names, ["gauntlet/a::t/4cpu-1llc-nosmt", "gauntlet/a::t/4cpu-2llc-nosmt"]);
    }

    #[test]
    fn no_machine_of_aarch64_has_two_threads_a_core() {
        let everywhere = Constraints {
            max_llcs: Some(u32::MAX),
            max_cpus: Some(u32::MAX),
            max_numa_nodes: Some(u32::MAX),
            ..Constraints::NONE
        };
        let on = |architecture, constraints| cells_on(architecture, [entry("t", constraints)], &[]);
        let threads = |cells: &[Cell]| -> u32 {
            let of = |cell: &Cell| cell.variant.topology.map_or(0, |topology| topology.threads);
            cells.iter().map(of).max().unwrap_or(0)
        };
        let (here, there) = (on("x86_64", everywhere), on("aarch64", everywhere));
        assert_eq!((here.len(), threads(&here)), (25, 2));
        assert_eq!((there.len(), threads(&there)), (14, 1));
        let smt = Constraints { requires_smt: Some(true), ..everywhere };
        assert_eq!((on("x86_64", smt).len(), on("aarch64", smt).len()), (11, 0));
        let built_for = cells([entry("t", everywhere)], &[]);
        assert_eq!(built_for.len(), on(std::env::consts::ARCH, everywhere).len());
    }

    #[test]
    fn several_kernels_are_a_dimension() {
        let one = Constraints { max_cpus: Some(4), max_llcs: Some(1), ..Constraints::NONE };
        let names = names(entry("t", one), &["6.18=debian-6.18.15", "/boot/vmlinuz-7.2.0+deb13"]);
        assert_eq!(
            names,
            [
                "gauntlet/t/4cpu-1llc-nosmt/kernel_6_18",
                "gauntlet/t/4cpu-1llc-nosmt/kernel_path_vmlinuz_7_2_0_deb13_7ecc18",
                "ktstr/t/kernel_6_18",
                "ktstr/t/kernel_path_vmlinuz_7_2_0_deb13_7ecc18",
            ]
        );
    }

    #[test]
    fn a_cell_asks_for_the_kernel_that_was_found() {
        let kernels = ["6.18=debian-6.18.15", "7.2"].map(NamedKernel::parse);
        let cells = cells([entry("t", Constraints::NONE)], &kernels);
        let of = |name: &str| cells.iter().find(|c| c.variant.name == name).unwrap().variant.kernel.clone();
        assert_eq!(of("ktstr/t/kernel_6_18").as_deref(), Some("debian-6.18.15"));
        assert_eq!(of("ktstr/t/kernel_7_2").as_deref(), Some("7.2"));
    }

    #[test]
    fn no_two_cells_have_one_name() {
        for kernels in [["/a/linux", "/b/linux"], ["6.18-x", "6.18.x"], ["x/linux/", "y/linux"]] {
            let names = names(entry("t", Constraints::NONE), &kernels);
            let mut unique = names.clone();
            unique.dedup();
            assert_eq!(names, unique, "they are sorted");
            assert!(names.iter().any(|name| name.starts_with("ktstr/t/")), "{names:?}");
        }
        let once = names(entry("t", Constraints::NONE), &["7.2", "7.2"]);
        assert!(once.iter().all(|name| !name.contains("kernel_")), "one kernel is no dimension: {once:?}");
    }

    #[test]
    fn only_cells_of_presets_wait_to_be_asked_for() {
        let kernels = ["a", "b"].map(NamedKernel::parse);
        for cell in cells([entry("t", Constraints::NONE)], &kernels) {
            assert_eq!(cell.ignored, cell.variant.name.starts_with("gauntlet/"));
            assert_eq!(cell.variant.topology.is_some(), cell.ignored);
        }
        let waiting: &'static KtstrTestEntry =
            Box::leak(Box::new(KtstrTestEntry { ignored: true, ..*entry("t", Constraints::NONE) }));
        assert!(cells([waiting], &kernels).iter().all(|cell| cell.ignored), "nor those of ignored tests");
    }

    #[test]
    fn a_test_on_this_host_has_no_cells() {
        let here: &'static KtstrTestEntry =
            Box::leak(Box::new(KtstrTestEntry { host_only: true, ..*entry("t", Constraints::NONE) }));
        assert!(cells([here], &["a", "b"].map(NamedKernel::parse)).is_empty());
    }
}
