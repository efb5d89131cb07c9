//! Where the kernel's BPF structures keep their members, by BTF only.
//!
//! Each member is looked up by itself: a kernel that lacks one loses what depends on it, no more.

use crate::btf::{Field, FieldMissing, KernelTypes};

/// A member, or the fact that this kernel lacks it.
pub(super) type Slot = Result<Field, FieldMissing>;

macro_rules! mirrors {
    ($($(#[$doc:meta])* $name:ident = $kernel:literal { $($field:ident: $path:literal,)* })*) => {
        $($(#[$doc])*
        #[derive(Debug)]
        pub(super) struct $name { $(pub(super) $field: Slot,)* }

        impl $name {
            fn of(types: &KernelTypes) -> Self {
                Self { $($field: types.field($kernel, $path),)* }
            }

            fn absent(&self) -> impl Iterator<Item = &FieldMissing> {
                [$(self.$field.as_ref().err(),)*].into_iter().flatten()
            }
        })*
    };
}

mirrors! {
    /// `lib/idr.c`: a radix tree since 4.20.
    Idr = "idr" { head: "idr_rt.xa_head", }
    /// `include/linux/xarray.h`.
    XaNode = "xa_node" { shift: "shift", slots: "slots", }
    /// `include/linux/bpf.h`.
    Map = "bpf_map" {
        id: "id", kind: "map_type", key_size: "key_size", value_size: "value_size",
        max_entries: "max_entries", flags: "map_flags", name: "name", btf: "btf",
        key_type: "btf_key_type_id", value_type: "btf_value_type_id",
        kernel_value_type: "btf_vmlinux_value_type_id",
    }
    /// `include/linux/bpf.h`.
    Array = "bpf_array" { elem_size: "elem_size", value: "value", pointers: "pptrs", }
    /// `kernel/bpf/hashtab.c`.
    Htab = "bpf_htab" { buckets: "buckets", n_buckets: "n_buckets", }
    /// `kernel/bpf/hashtab.c`.
    Bucket = "bucket" { first: "head.first", }
    /// `kernel/bpf/hashtab.c`.
    HtabElem = "htab_elem" { next: "hash_node.next", key: "key", }
    /// `include/linux/bpf_local_storage.h`.
    StorageMap = "bpf_local_storage_map" { buckets: "buckets", bucket_log: "bucket_log", }
    /// As above.
    StorageBucket = "bpf_local_storage_map_bucket" { first: "list.first", }
    /// As above.
    StorageElem = "bpf_local_storage_elem" {
        node: "map_node", next: "map_node.next", storage: "local_storage", data: "sdata.data",
    }
    /// As above.
    Storage = "bpf_local_storage" { owner: "owner", }
    /// `kernel/bpf/ringbuf.c`.
    RingbufMap = "bpf_ringbuf_map" { rb: "rb", }
    /// As above.
    Ringbuf = "bpf_ringbuf" {
        mask: "mask", consumer: "consumer_pos", producer: "producer_pos", data: "data",
        overwrite_mode: "overwrite_mode", overwrite: "overwrite_pos",
    }
    /// `kernel/bpf/bpf_struct_ops.c`.
    StructOps = "bpf_struct_ops_map" {
        kvalue: "kvalue", btf: "btf", links: "links", count: "funcs_cnt",
    }
    /// `include/linux/bpf.h`.
    Link = "bpf_link" { prog: "prog", }
    /// `kernel/bpf/arena.c`.
    Arena = "bpf_arena" {
        user_start: "user_vm_start", user_end: "user_vm_end", kernel: "kern_vm",
        scratch: "scratch_page",
    }
    /// `include/linux/vmalloc.h`.
    VmStruct = "vm_struct" { addr: "addr", }
    /// `kernel/bpf/btf.c`.
    BtfObject = "btf" { data: "data", len: "data_size", base: "base_btf", name: "name", id: "id", }
    /// `include/linux/filter.h`.
    Prog = "bpf_prog" {
        len: "len", kind: "type", tag: "tag", stats: "stats", aux: "aux", insns: "insnsi", jited: "jited",
        sleepable: "sleepable",
    }
    /// `include/linux/bpf.h`.
    Aux = "bpf_prog_aux" {
        id: "id", name: "name", verified: "verified_insns", load_time: "load_time", btf: "btf",
        func_info: "func_info", func_info_cnt: "func_info_cnt", used_maps: "used_maps",
        used_map_cnt: "used_map_cnt", attach_name: "attach_func_name",
    }
    /// `include/linux/filter.h`.
    Stats = "bpf_prog_stats" { count: "cnt", nanos: "nsecs", misses: "misses", }
    /// `include/linux/sched.h`.
    Task = "task_struct" { pid: "pid", comm: "comm", }
    /// `include/linux/cgroup-defs.h`.
    Cgroup = "cgroup" { node: "kn", }
    /// `include/linux/kernfs.h`.
    KernfsNode = "kernfs_node" { id: "id", name: "name", }
}

/// All of it.
#[derive(Debug)]
pub struct BpfLayout {
    pub(super) idr: Idr,
    pub(super) xa_node: XaNode,
    pub(super) map: Map,
    pub(super) array: Array,
    pub(super) htab: Htab,
    pub(super) bucket: Bucket,
    pub(super) bucket_size: Result<u64, FieldMissing>,
    pub(super) htab_elem: HtabElem,
    pub(super) storage_map: StorageMap,
    pub(super) storage_bucket: StorageBucket,
    pub(super) storage_bucket_size: Result<u64, FieldMissing>,
    pub(super) storage_elem: StorageElem,
    pub(super) storage: Storage,
    pub(super) ringbuf_map: RingbufMap,
    pub(super) ringbuf: Ringbuf,
    pub(super) struct_ops: StructOps,
    pub(super) link: Link,
    pub(super) arena: Arena,
    pub(super) vm_struct: VmStruct,
    pub(super) btf: BtfObject,
    pub(super) prog: Prog,
    pub(super) aux: Aux,
    pub(super) stats: Stats,
    pub(super) task: Task,
    pub(super) cgroup: Cgroup,
    pub(super) kernfs_node: KernfsNode,
}

impl BpfLayout {
    /// Looks everything up. A few milliseconds.
    pub fn of(types: &KernelTypes) -> Self {
        Self {
            idr: Idr::of(types),
            xa_node: XaNode::of(types),
            map: Map::of(types),
            array: Array::of(types),
            htab: Htab::of(types),
            bucket: Bucket::of(types),
            bucket_size: types.size_of("bucket"),
            htab_elem: HtabElem::of(types),
            storage_map: StorageMap::of(types),
            storage_bucket: StorageBucket::of(types),
            storage_bucket_size: types.size_of("bpf_local_storage_map_bucket"),
            storage_elem: StorageElem::of(types),
            storage: Storage::of(types),
            ringbuf_map: RingbufMap::of(types),
            ringbuf: Ringbuf::of(types),
            struct_ops: StructOps::of(types),
            link: Link::of(types),
            arena: Arena::of(types),
            vm_struct: VmStruct::of(types),
            btf: BtfObject::of(types),
            prog: Prog::of(types),
            aux: Aux::of(types),
            stats: Stats::of(types),
            task: Task::of(types),
            cgroup: Cgroup::of(types),
            kernfs_node: KernfsNode::of(types),
        }
    }

    /// The members this kernel lacks. `overwrite_*` of ring buffers and `scratch_page` of arenas are
    /// younger than the rest: where they are absent there is no such mode.
    pub fn absent(&self) -> Vec<&FieldMissing> {
        let optional = [&self.ringbuf.overwrite_mode, &self.ringbuf.overwrite, &self.arena.scratch];
        let all = (self.idr.absent())
            .chain(self.xa_node.absent())
            .chain(self.map.absent())
            .chain(self.array.absent())
            .chain(self.htab.absent())
            .chain(self.bucket.absent())
            .chain(self.htab_elem.absent())
            .chain(self.storage_map.absent())
            .chain(self.storage_bucket.absent())
            .chain(self.storage_elem.absent())
            .chain(self.storage.absent())
            .chain(self.ringbuf_map.absent())
            .chain(self.ringbuf.absent())
            .chain(self.struct_ops.absent())
            .chain(self.link.absent())
            .chain(self.arena.absent())
            .chain(self.vm_struct.absent())
            .chain(self.btf.absent())
            .chain(self.prog.absent())
            .chain(self.aux.absent())
            .chain(self.stats.absent())
            .chain(self.task.absent())
            .chain(self.cgroup.absent())
            .chain(self.kernfs_node.absent());
        all.filter(|missing| !optional.iter().any(|slot| slot.as_ref().err() == Some(missing))).collect()
    }
}
