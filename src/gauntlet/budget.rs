//! What a run covers and how long it will take, as far as a budget goes by it: [`ktstr_proto::budget`]
//! chooses.

use std::time::Duration;

use ktstr_proto::Topology;

/// What a run on this machine covers.
pub fn features(test: &str, scheduler: &str, kernel: Option<&str>, shape: &Topology) -> Vec<String> {
    let class = |value: u32, bounds: &[u32]| {
        let above = bounds.iter().filter(|bound| value > **bound).count();
        bounds.get(above).map_or_else(|| "more".to_owned(), |bound| format!("<={bound}"))
    };
    vec![
        format!("test {test}"),
        format!("scheduler {scheduler}"),
        format!("kernel {}", kernel.unwrap_or("default")),
        format!("cpus {}", class(shape.cpus(), &[4, 8, 16, 64, 128])),
        format!("llcs {}", class(shape.llcs, &[1, 2, 4, 8])),
        format!("nodes {}", class(shape.numa_nodes, &[1, 2, 4])),
        format!("smt {}", shape.threads > 1),
    ]
}

/// A guess where nothing was learned: a boot, the scenario, and what emulation adds to both.
pub fn guess(accel: &str, shape: &Topology, scenario: Duration) -> Duration {
    let (cpus, scenario) = (f64::from(shape.cpus()), scenario.as_secs_f64());
    let seconds = match accel {
        "kvm" => 4.0 + cpus / 10.0 + scenario,
        "det" => 15.0 + cpus + scenario * (1.0 + cpus),
        _ => 6.0 + cpus / 2.0 + scenario,
    };
    Duration::from_secs_f64(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_classes() {
        let shape = Topology { numa_nodes: 1, llcs: 4, cores: 4, threads: 2 };
        let features = features("t", "EEVDF", None, &shape);
        for wanted in ["cpus <=64", "llcs <=4", "nodes <=1", "smt true", "kernel default"] {
            assert!(features.iter().any(|f| f == wanted), "{wanted}: {features:?}");
        }
    }
}
