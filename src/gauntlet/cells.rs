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

/// All cells of these tests; `kernels` as the user named them, more than one makes a dimension.
pub fn cells(entries: impl IntoIterator<Item = &'static KtstrTestEntry>, kernels: &[String]) -> Vec<Cell> {
    let on_machines = entries.into_iter().filter(|entry| !entry.host_only);
    let mut all: Vec<Cell> = on_machines.flat_map(|entry| cells_of(entry, kernels)).collect();
    all.sort_by(|a, b| a.variant.name.cmp(&b.variant.name));
    all
}

fn cells_of(entry: &'static KtstrTestEntry, kernels: &[String]) -> Vec<Cell> {
    let test = entry.full_name();
    let several = kernels.len() > 1;
    let named: Vec<Option<&String>> = if several { kernels.iter().map(Some).collect() } else { vec![None] };
    let cell = |name: String, preset: Option<&Preset>, kernel: Option<&String>| Cell {
        entry,
        variant: Variant {
            name: match kernel {
                Some(kernel) => format!("{name}/{}", kernel_label(kernel)),
                None => name,
            },
            topology: preset.map(|preset| preset.topology),
            kernel: kernel.cloned(),
        },
        ignored: preset.is_some(),
    };
    let own = named.iter().filter(|_| several).map(|kernel| cell(format!("ktstr/{test}"), None, *kernel));
    let inherited = entry.scheduler.map_or(Constraints::NONE, |scheduler| scheduler.constraints);
    let bounds = Constraints::defaults().merge(inherited).merge(entry.constraints);
    let admitted = PRESETS.iter().filter(|preset| bounds.admit(&preset.topology));
    let varied = admitted.flat_map(|preset| {
        let name = format!("gauntlet/{test}/{}", preset.name);
        named.iter().map(move |kernel| (name.clone(), preset, *kernel))
    });
    own.chain(varied.map(|(name, preset, kernel)| cell(name, Some(preset), kernel))).collect()
}

/// A kernel as part of a test's name: `7.2` is `kernel_7_2`.
pub fn kernel_label(kernel: &str) -> String {
    let name = kernel.trim_end_matches('/').rsplit('/').next().unwrap_or(kernel);
    let safe: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).collect();
    if kernel.contains('/') { format!("kernel_path_{safe}") } else { format!("kernel_{safe}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests::entry;

    fn names(entry: &'static KtstrTestEntry, kernels: &[&str]) -> Vec<String> {
        let kernels: Vec<String> = kernels.iter().map(|k| k.to_string()).collect();
        cells([entry], &kernels).into_iter().map(|cell| cell.variant.name).collect()
    }

    #[test]
    fn a_test_is_run_on_the_presets_it_admits() {
        let small = Constraints { max_cpus: Some(4), ..Constraints::NONE };
        let names = names(entry("a::t", small), &[]);
        assert_eq!(names, ["gauntlet/a::t/4cpu-1llc-nosmt", "gauntlet/a::t/4cpu-2llc-nosmt"]);
    }

    #[test]
    fn several_kernels_are_a_dimension() {
        let one = Constraints { max_cpus: Some(4), max_llcs: Some(1), ..Constraints::NONE };
        let names = names(entry("t", one), &["6.18", "/boot/vmlinuz-7.2.0+deb13"]);
        assert_eq!(
            names,
            [
                "gauntlet/t/4cpu-1llc-nosmt/kernel_6_18",
                "gauntlet/t/4cpu-1llc-nosmt/kernel_path_vmlinuz_7_2_0_deb13",
                "ktstr/t/kernel_6_18",
                "ktstr/t/kernel_path_vmlinuz_7_2_0_deb13",
            ]
        );
    }

    #[test]
    fn only_cells_of_presets_wait_to_be_asked_for() {
        let kernels = ["a".to_owned(), "b".to_owned()];
        for cell in cells([entry("t", Constraints::NONE)], &kernels) {
            assert_eq!(cell.ignored, cell.variant.name.starts_with("gauntlet/"));
            assert_eq!(cell.variant.topology.is_some(), cell.ignored);
        }
    }
}
