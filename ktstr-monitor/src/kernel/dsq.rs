//! Dispatch queues of sched_ext and the tasks on them (`kernel/sched/ext.c`).
//!
//! Each CPU has a local DSQ and may have one for bypassing, each node a global one, and the BPF
//! scheduler creates others, which a hash table of its `scx_sched` holds. A DSQ keeps its tasks on
//! one list in the order in which they will be taken, also where it is ordered by virtual time.

use super::list::{self, Cut, Walk};
use super::value::{Gap, Reading};
use super::view::View;
use crate::addr::{CpuId, Kva};

/// Tasks on one DSQ, at most.
const MAX_QUEUED: usize = 50_000;
/// User-created DSQs, at most.
const MAX_DSQS: usize = 50_000;
/// Buckets of the hash table, at most.
const MAX_BUCKETS: u32 = 1 << 20;
/// Tables that are being rehashed into each other, at most.
const MAX_TABLES: usize = 4;
/// NUMA nodes, at most (`MAX_NUMNODES` is 1024).
const MAX_NODES: u32 = 1024;

crate::mirror! {
    /// What is read of a DSQ.
    DsqCopy, DsqLayout of "scx_dispatch_q" {
        id: u64 = "id",
        nr: u32 = "nr",
        seq: u32 = "seq",
    }
}

/// What kind of DSQ it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DsqKind {
    /// `SCX_DSQ_LOCAL` of a CPU.
    Local(CpuId),
    /// `SCX_DSQ_GLOBAL` of a node.
    Global(u32),
    /// `SCX_DSQ_BYPASS` of a CPU.
    Bypass(CpuId),
    /// `rq.scx.reject_dsq` of a CPU: what a sub-scheduler had no right to put on it.
    Reject(CpuId),
    /// `rq.scx.rescue.dsq` of a CPU: what is run whatever the schedulers say.
    Rescue(CpuId),
    /// Created by the BPF scheduler.
    User,
}

/// The queues within a run queue, of which every kernel has some.
const OF_CPUS: [(&str, fn(CpuId) -> DsqKind); 4] = [
    ("scx.local_dsq", DsqKind::Local),
    ("scx.bypass_dsq", DsqKind::Bypass),
    ("scx.reject_dsq", DsqKind::Reject),
    ("scx.rescue.dsq", DsqKind::Rescue),
];

/// A dispatch queue.
#[derive(Clone, Debug)]
pub struct Dsq {
    /// Where it lies.
    pub at: Kva,
    /// Whose it is.
    pub kind: DsqKind,
    /// Its members.
    pub copy: Reading<DsqCopy>,
    /// Addresses of the tasks on it, the next one to be taken first.
    pub queued: Walk<Kva>,
}

impl Dsq {
    /// Whether a CPU stood while it put a task on the queue or took one off: list and count are written one after
    /// the other, under the queue's lock.
    #[must_use]
    pub fn is_being_changed(&self) -> bool {
        let counted = self.copy.as_ref().ok().and_then(|copy| copy.nr.as_ref().ok());
        self.queued.cut.is_none() && counted.is_some_and(|nr| *nr as usize != self.queued.items.len())
    }
}

/// All DSQs of the loaded scheduler; `instance` is its `scx_sched`.
pub fn all(view: &View<'_, '_>, instance: Option<Kva>) -> Walk<Dsq> {
    let mut found = Walk { items: Vec::new(), cut: None };
    for area in view.live.cpus() {
        let rq = view.live.per_cpu(view.profile.runqueues(), *area);
        for (member, kind) in OF_CPUS {
            if let Ok(into) = view.offset("rq", member) {
                found.items.push(read(view, rq.wrapping_add(into), kind(area.cpu)));
            }
        }
    }
    let Some(instance) = instance else { return found };
    if let Ok((pointer, into)) = bypass_of_sched(view) {
        let what = "scx_sched.pcpu";
        if let Ok(pcpu) = list::pointer(&view.mem, instance.wrapping_add(pointer), what) {
            for area in view.live.cpus() {
                let at = pcpu.wrapping_add(area.offset).wrapping_add(into);
                found.items.push(read(view, at, DsqKind::Bypass(area.cpu)));
            }
        }
    }
    match globals(view, instance) {
        Ok(globals) => found.items.extend(
            (0..)
                .zip(globals)
                .filter(|(_, at)| !at.is_null())
                .map(|(node, at)| read(view, at, DsqKind::Global(node))),
        ),
        Err(gap) => {
            found.cut = Some(Cut::Unreachable { list: "global DSQs", source: Box::new(gap) });
        }
    }
    let users = users(view, instance);
    found.items.extend(users.items.into_iter().map(|at| read(view, at, DsqKind::User)));
    found.cut = found.cut.or(users.cut);
    found
}

fn bypass_of_sched(view: &View<'_, '_>) -> Reading<(u64, u64)> {
    Ok((view.offset("scx_sched", "pcpu")?, view.offset("scx_sched_pcpu", "bypass_dsq")?))
}

/// `scx_sched.pnode[n]->global_dsq` where there is such a member, else `scx_sched.global_dsqs[n]`.
fn globals(view: &View<'_, '_>, instance: Kva) -> Reading<Vec<Kva>> {
    let (member, into) = match view.offset("scx_sched", "pnode") {
        Ok(member) => (member, view.offset("scx_sched_pnode", "global_dsq")?),
        Err(_) => (view.offset("scx_sched", "global_dsqs")?, 0),
    };
    // A kernel for one node has no such variable.
    let nodes = view.half("nr_node_ids").unwrap_or(1).min(MAX_NODES) as usize;
    let array = list::pointer(&view.mem, instance.wrapping_add(member), "scx_sched's global DSQs")?;
    let pointers = list::words(&view.mem, array, nodes, "scx_sched's global DSQs")?;
    let place = |at: u64| if at == 0 { Kva(0) } else { Kva(at).wrapping_add(into) };
    Ok(pointers.into_iter().map(place).collect())
}

/// The DSQ at `at` with the tasks on it.
pub fn read(view: &View<'_, '_>, at: Kva, kind: DsqKind) -> Dsq {
    Dsq { at, kind, copy: view.profile.state.dsq.read(&view.mem, at), queued: queued(view, at) }
}

fn queued(view: &View<'_, '_>, dsq: Kva) -> Walk<Kva> {
    let list = "scx_dispatch_q.list";
    let offsets = || {
        Ok::<_, Gap>((
            view.offset("scx_dispatch_q", "list")?,
            view.offset("task_struct", "scx.dsq_list.node")?,
            view.offset("scx_dsq_list_node", "flags"),
            view.enumerator("scx_dsq_lnode_flags", "SCX_DSQ_LNODE_ITER_CURSOR"),
        ))
    };
    let (head, node, flags, cursor) = match offsets() {
        Ok(offsets) => offsets,
        Err(gap) => return Walk::none(list, gap),
    };
    let nodes = list::list_head(&view.mem, list, dsq.wrapping_add(head), MAX_QUEUED);
    // Iterators put markers of their own between the tasks.
    let is_cursor = |at: &Kva| match (&flags, &cursor) {
        (Ok(into), Ok(bit)) => {
            let flags = view.mem.read_u32(at.wrapping_add(*into));
            flags.is_ok_and(|flags| i64::from(flags) & bit != 0)
        }
        _ => false,
    };
    let items = nodes.items.into_iter().filter(|at| !is_cursor(at)).map(|at| list::container(at, node));
    Walk { items: items.collect(), cut: nodes.cut }
}

/// The DSQs in `scx_sched.dsq_hash`.
fn users(view: &View<'_, '_>, instance: Kva) -> Walk<Kva> {
    let list = "scx_sched.dsq_hash";
    let offsets = || {
        Ok::<_, Gap>((
            view.offset("scx_sched", "dsq_hash.tbl")?,
            view.offset("bucket_table", "size")?,
            view.offset("bucket_table", "nest")?,
            view.offset("bucket_table", "future_tbl")?,
            view.offset("bucket_table", "buckets")?,
            view.offset("scx_dispatch_q", "hash_node")?,
        ))
    };
    let (member, size, nest, future, buckets, hash_node) = match offsets() {
        Ok(offsets) => offsets,
        Err(gap) => return Walk::none(list, gap),
    };
    let mut found = Walk { items: Vec::new(), cut: None };
    let mut table = list::pointer(&view.mem, instance.wrapping_add(member), list);
    for nth in 0.. {
        let at = match table {
            Ok(at) if at.is_null() => break,
            Ok(at) => at,
            Err(gap) => {
                found.cut = Some(Cut::Unreachable { list, source: Box::new(gap) });
                break;
            }
        };
        if nth == MAX_TABLES {
            found.cut.get_or_insert(Cut::TooLong { list, limit: MAX_TABLES });
            break;
        }
        match bucket_heads(view, at, (size, nest, buckets)) {
            Ok(heads) => heads.into_iter().for_each(|head| follow(view, list, head, &mut found)),
            Err(gap) => found.cut = Some(Cut::Unreachable { list, source: Box::new(gap) }),
        }
        table = list::pointer(&view.mem, at.wrapping_add(future), "bucket_table.future_tbl");
    }
    found.map(|node| list::container(node, hash_node))
}

/// First entries of the buckets that have any.
fn bucket_heads(
    view: &View<'_, '_>,
    table: Kva,
    (size, nest, buckets): (u64, u64, u64),
) -> Reading<Vec<Kva>> {
    let half = |into, what| {
        view.mem.read_u32(table.wrapping_add(into)).map_err(|source| Gap::Unreadable { what, source })
    };
    let size = half(size, "bucket_table.size")?;
    if size == 0 || size > MAX_BUCKETS {
        return Err(Gap::Implausible { what: "bucket_table.size", value: size.into() });
    }
    let nested = half(nest, "bucket_table.nest")?;
    if nested != 0 {
        // Only when memory was so short that no table could be had in one piece.
        return Err(Gap::Implausible { what: "bucket_table.nest", value: nested.into() });
    }
    let words = list::words(&view.mem, table.wrapping_add(buckets), size as usize, "bucket_table.buckets")?;
    // Bit 0 of a bucket is its lock.
    Ok(words.into_iter().map(|word| Kva(word & !1)).filter(|head| !head.is_null()).collect())
}

/// Follows one bucket; the end of its chain is an odd word.
fn follow(view: &View<'_, '_>, list: &'static str, head: Kva, found: &mut Walk<Kva>) {
    if found.items.len() > MAX_DSQS {
        found.cut = Some(Cut::TooLong { list, limit: MAX_DSQS });
        return;
    }
    found.items.push(head);
    let rest = list::chain(&view.mem, list, head, MAX_DSQS, |next| next.0 & 1 == 1);
    found.items.extend(rest.items);
    found.cut = found.cut.take().or(rest.cut);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn count_and_list_differ_where_a_cpu_stood_in_between() {
        let queue = |nr, items: &[u64], cut| Dsq {
            at: Kva(0xffff_8880_0000_1000),
            kind: DsqKind::User,
            copy: Ok(DsqCopy { id: Ok(1), nr: Ok(nr), seq: Ok(0) }),
            queued: Walk { items: items.iter().copied().map(Kva).collect(), cut },
        };
        let cut = || Some(Cut::TooLong { list: "scx_dispatch_q.list", limit: 2 });
        assert!(!queue(2, &[0x10, 0x20], None).is_being_changed());
        assert!(queue(1, &[0x10, 0x20], None).is_being_changed());
        assert!(!queue(9, &[0x10, 0x20], cut()).is_being_changed(), "what else is on it is not known");
    }
}
