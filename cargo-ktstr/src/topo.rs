//! `topo`: the host's CPUs, last-level caches and NUMA nodes, as performance mode lays machines out on them.

use std::path::Path;
use std::process::ExitCode;

use ktstr_orch::host::HostTopology;
use ktstr_orch::host::topology::format_list;

use crate::exit::print;

/// Prints it.
pub fn run() -> anyhow::Result<ExitCode> {
    print(&render(&HostTopology::read(Path::new("/sys"))?))?;
    Ok(ExitCode::SUCCESS)
}

fn render(host: &HostTopology) -> String {
    let cpus = host.cpus();
    let mut text = format!("CPUs: {} ({})\n", cpus.len(), format_list(&cpus));
    text.push_str(&format!("LLCs: {}\nNUMA nodes: {}\n", host.llcs.len(), host.nodes.len()));
    for (index, llc) in host.llcs.iter().enumerate() {
        text.push_str(&format!("LLC {index} (node {}): [{}]", llc.node, format_list(&llc.cpus())));
        let threads = llc.cores.iter().map(Vec::len).max().unwrap_or(0);
        if threads > 1 {
            text.push_str(&format!(", cores: {}, threads each: {threads}", llc.cores.len()));
        }
        text.push('\n');
    }
    for (number, node) in &host.nodes {
        let pages = node.large_pages;
        if node.cpus.is_empty() {
            text.push_str(&format!("node {number}: memory without CPUs\n"));
        }
        if pages.reserved > 0 {
            text.push_str(&format!(
                "node {number}: {} of {} pages of 2 MiB free\n",
                pages.free, pages.reserved
            ));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What is printed of a host with these files below `/sys`.
    fn printed(files: &[(&str, &str)]) -> String {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join("devices/system").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        render(&HostTopology::read(root.path()).unwrap())
    }

    #[test]
    fn two_caches_threads_and_a_node_of_memory() {
        let (shared, siblings) = ("cache/index3/shared_cpu_list", "topology/core_cpus_list");
        let mut files = vec![("cpu/online".to_owned(), "0-3")];
        for (cpu, (cache, core)) in
            [("0-1", "0-1"), ("0-1", "0-1"), ("2-3", "2"), ("2-3", "3")].iter().enumerate()
        {
            files.push((format!("cpu/cpu{cpu}/cache/index3/level"), "3"));
            files.push((format!("cpu/cpu{cpu}/{shared}"), cache));
            files.push((format!("cpu/cpu{cpu}/{siblings}"), core));
        }
        for (node, cpus) in ["0-1", "2-3", ""].iter().enumerate() {
            files.push((format!("node/node{node}/cpulist"), cpus));
        }
        for (name, count) in [("nr", "8"), ("free", "5")] {
            files.push((format!("node/node1/hugepages/hugepages-2048kB/{name}_hugepages"), count));
        }
        let files: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        assert_eq!(
            printed(&files),
            "CPUs: 4 (0-3)\nLLCs: 2\nNUMA nodes: 3\nLLC 0 (node 0): [0-1], cores: 1, threads each: 2\n\
             LLC 1 (node 1): [2-3]\nnode 1: 5 of 8 pages of 2 MiB free\nnode 2: memory without CPUs\n"
        );
    }

    #[test]
    fn a_host_without_caches_or_nodes() {
        let text = printed(&[("cpu/online", "0-1")]);
        assert!(text.ends_with("NUMA nodes: 1\nLLC 0 (node 0): [0-1]\n"), "{text}");
    }
}
