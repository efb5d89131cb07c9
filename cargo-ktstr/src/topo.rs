//! `topo`: the host's CPUs, last-level caches and NUMA nodes, from sysfs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use crate::exit::print;

/// The host as its kernel describes it.
#[derive(Debug, Default, PartialEq, Eq)]
struct HostTopology {
    cpus: BTreeSet<u32>,
    /// CPUs of each cache, and its node.
    llcs: Vec<(Option<u32>, BTreeSet<u32>)>,
    nodes: BTreeMap<u32, BTreeSet<u32>>,
}

/// Prints it.
pub fn run() -> anyhow::Result<ExitCode> {
    print(&render(&read(Path::new("/sys/devices/system"))?))?;
    Ok(ExitCode::SUCCESS)
}

fn read(root: &Path) -> anyhow::Result<HostTopology> {
    let online = root.join("cpu/online");
    let text = fs::read_to_string(&online).with_context(|| format!("cannot read {}", online.display()))?;
    let cpus = parse_list(&text).with_context(|| format!("{} has {text:?}", online.display()))?;
    let nodes = read_nodes(&root.join("node"), &cpus);
    let caches: BTreeSet<BTreeSet<u32>> = cpus.iter().map(|&cpu| last_level(root, cpu, &cpus)).collect();
    let llcs = caches
        .into_iter()
        .map(|cache| {
            let node = nodes.iter().find(|(_, members)| cache.is_subset(members)).map(|(node, _)| *node);
            (node, cache)
        })
        .collect();
    Ok(HostTopology { cpus, llcs, nodes })
}

/// CPUs that share the highest cache level with `cpu`. A host that describes
/// no caches (some virtual machines) has one cache for all.
fn last_level(root: &Path, cpu: u32, online: &BTreeSet<u32>) -> BTreeSet<u32> {
    let caches = fs::read_dir(root.join(format!("cpu/cpu{cpu}/cache"))).into_iter().flatten().flatten();
    let deepest = caches
        .filter_map(|index| {
            let level: u32 = fs::read_to_string(index.path().join("level")).ok()?.trim().parse().ok()?;
            let shared = parse_list(&fs::read_to_string(index.path().join("shared_cpu_list")).ok()?)?;
            Some((level, shared))
        })
        .max_by_key(|(level, _)| *level);
    deepest.map_or_else(|| online.clone(), |(_, shared)| shared.intersection(online).copied().collect())
}

fn read_nodes(dir: &Path, online: &BTreeSet<u32>) -> BTreeMap<u32, BTreeSet<u32>> {
    let nodes: BTreeMap<u32, BTreeSet<u32>> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|item| {
            let node = item.file_name().to_str()?.strip_prefix("node")?.parse().ok()?;
            let cpus = parse_list(&fs::read_to_string(item.path().join("cpulist")).ok()?)?;
            Some((node, cpus))
        })
        .collect();
    if nodes.is_empty() { BTreeMap::from([(0, online.clone())]) } else { nodes }
}

/// `0-3,8` → {0, 1, 2, 3, 8}; the empty list is an empty set.
fn parse_list(text: &str) -> Option<BTreeSet<u32>> {
    let mut set = BTreeSet::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        set.extend(first.parse::<u32>().ok()?..=last.parse().ok()?);
    }
    Some(set)
}

fn render_list(set: &BTreeSet<u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for &cpu in set {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let texts = ranges.into_iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
    texts.collect::<Vec<_>>().join(",")
}

fn render(host: &HostTopology) -> String {
    let mut text = format!("CPUs: {} ({})\n", host.cpus.len(), render_list(&host.cpus));
    text.push_str(&format!("LLCs: {}\nNUMA nodes: {}\n", host.llcs.len(), host.nodes.len()));
    for (index, (node, cpus)) in host.llcs.iter().enumerate() {
        let node = node.map_or_else(|| "?".to_owned(), |n| n.to_string());
        text.push_str(&format!("LLC {index} (node {node}): [{}]\n", render_list(cpus)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        let set = parse_list("0-3,8,10-11\n").unwrap();
        assert_eq!(set.len(), 7);
        assert_eq!(render_list(&set), "0-3,8,10-11");
        assert_eq!(parse_list("\n"), Some(BTreeSet::new()));
        assert_eq!(parse_list("0-x"), None);
    }

    #[test]
    fn two_nodes_two_caches() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("cpu/online", "0-3\n");
        for cpu in 0..4 {
            let shared = if cpu < 2 { "0-1" } else { "2-3" };
            write(&format!("cpu/cpu{cpu}/cache/index0/level"), "1");
            write(&format!("cpu/cpu{cpu}/cache/index0/shared_cpu_list"), &cpu.to_string());
            write(&format!("cpu/cpu{cpu}/cache/index3/level"), "3");
            write(&format!("cpu/cpu{cpu}/cache/index3/shared_cpu_list"), shared);
        }
        write("node/node0/cpulist", "0-1\n");
        write("node/node1/cpulist", "2-3\n");
        let text = render(&read(root.path()).unwrap());
        assert_eq!(
            text,
            "CPUs: 4 (0-3)\nLLCs: 2\nNUMA nodes: 2\nLLC 0 (node 0): [0-1]\nLLC 1 (node 1): [2-3]\n"
        );
    }

    #[test]
    fn a_host_without_caches_or_nodes() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("cpu")).unwrap();
        fs::write(root.path().join("cpu/online"), "0-1").unwrap();
        let text = render(&read(root.path()).unwrap());
        assert!(text.ends_with("NUMA nodes: 1\nLLC 0 (node 0): [0-1]\n"), "{text}");
    }
}
