//! Work that faults pages in and moves them.

use std::time::Duration;

use nix::sys::mman::MmapAdvise;

use crate::work::{
    cpus,
    not_run::Missing,
    region::Region,
    sys::{bind_memory, now_ns},
    worker::{Done, Worker},
};

const PAGE: usize = 4096;

pub(super) fn page_faults(w: &mut Worker<'_>, region_kib: u32, touches: u32, spin_iters: u64) -> Done {
    let refused = |errno| Missing::Memory.because(errno);
    let mut region = Region::new(region_kib as usize * 1024).map_err(refused)?;
    // Kernels without huge pages refuse, and have none to avoid.
    let _ = region.advise(MmapAdvise::MADV_NOHUGEPAGE);
    let pages = (region.len() / PAGE).max(1) as u64;
    while !w.stopped() {
        for _ in 0..touches {
            let page = w.rng.below(pages) as usize;
            region.write(page * PAGE);
            w.burner.compute(spin_iters);
        }
        region.advise(MmapAdvise::MADV_DONTNEED).map_err(refused)?;
        w.meter.did(u64::from(touches), 1);
        w.meter.checkpoint();
    }
    Ok(())
}

/// Workers start on different nodes. With one node to visit the memory stays there.
pub(super) fn sweep(w: &mut Worker<'_>, region_kib: u32, period_ms: u64, targets: &[u32]) -> Done {
    let nodes = if targets.is_empty() { cpus::memory_nodes() } else { targets.to_vec() };
    if nodes.len() < 2 && targets.is_empty() {
        return Err(Missing::Nodes.into());
    }
    let mut region =
        Region::new(region_kib as usize * 1024).map_err(|errno| Missing::Memory.because(errno))?;
    for node in nodes.iter().cycle().skip(w.place.index % nodes.len()) {
        if w.stopped() {
            break;
        }
        bind_memory(&region, &[*node]).map_err(|errno| Missing::Memory.because(errno))?;
        let until = now_ns() + Duration::from_millis(period_ms).as_nanos() as u64;
        while now_ns() < until && !w.stopped() {
            for offset in (0..region.len()).step_by(PAGE) {
                region.touch(offset);
            }
            w.meter.did(region.len().div_ceil(PAGE) as u64, 0);
            w.meter.checkpoint();
        }
        w.meter.did(0, 1);
    }
    Ok(())
}
