//! The kernel's BPF structures as a made-up kernel has them, where a guest has room for some, and the
//! types of a program's object.

use crate::btf_writer::BtfWriter;

/// Guest-physical: room for made-up maps and programs.
pub const PLACE: u64 = 0xbc_0000;
pub const LEN: u64 = 0x2_0000;

/// The kernel's BPF structures with made-up places.
pub fn add_types(btf: &mut BtfWriter, u32_: u32, u64_: u32, char_: u32) {
    let name = btf.array(char_, u32_, 16);
    let tag = btf.array(char_, u32_, 8);
    let none = btf.array(u64_, u32_, 0);
    let slots = btf.array(u64_, u32_, 64);
    // Members as (name, type, byte).
    let mut add = |kernel: &str, size: u32, members: &[(&str, u32, u32)]| {
        let members: Vec<_> = members.iter().map(|&(name, ty, at)| (name, ty, at * 8)).collect();
        btf.structure(kernel, size, &members)
    };
    let xarray = add("xarray", 16, &[("xa_head", u64_, 8)]);
    add("idr", 24, &[("idr_rt", xarray, 0)]);
    add("xa_node", 528, &[("shift", char_, 0), ("slots", slots, 16)]);
    let map_type = add(
        "bpf_map",
        80,
        &[
            ("map_type", u32_, 0),
            ("key_size", u32_, 4),
            ("value_size", u32_, 8),
            ("max_entries", u32_, 12),
            ("map_flags", u32_, 16),
            ("id", u32_, 20),
            ("btf_key_type_id", u32_, 24),
            ("btf_value_type_id", u32_, 28),
            ("btf_vmlinux_value_type_id", u32_, 32),
            ("btf", u64_, 40),
            ("name", name, 48),
        ],
    );
    let after = 80;
    let array = [("map", map_type, 0), ("elem_size", u32_, after), ("value", none, 88), ("pptrs", none, 88)];
    add("bpf_array", 88, &array);
    add("bpf_htab", 96, &[("buckets", u64_, after), ("n_buckets", u32_, 88)]);
    let head = add("hlist_nulls_head", 8, &[("first", u64_, 0)]);
    add("bucket", 16, &[("head", head, 0)]);
    let node = add("hlist_node", 16, &[("next", u64_, 0)]);
    add("htab_elem", 32, &[("hash_node", node, 0), ("key", none, 32)]);
    add("bpf_local_storage_map", 96, &[("buckets", u64_, after), ("bucket_log", u32_, 88)]);
    let list = add("hlist_head", 8, &[("first", u64_, 0)]);
    add("bpf_local_storage_map_bucket", 16, &[("list", list, 0)]);
    let data = add("bpf_local_storage_data", 8, &[("data", none, 8)]);
    let elem = [("map_node", node, 0), ("local_storage", u64_, 32), ("sdata", data, 40)];
    add("bpf_local_storage_elem", 48, &elem);
    add("bpf_local_storage", 8, &[("owner", u64_, 0)]);
    add("bpf_ringbuf_map", 88, &[("rb", u64_, after)]);
    let ring = [("mask", u64_, 0), ("consumer_pos", u64_, 8), ("producer_pos", u64_, 16), ("data", none, 24)];
    add("bpf_ringbuf", 24, &ring);
    let ops = [("btf", u64_, after), ("links", u64_, 88), ("funcs_cnt", u32_, 96), ("kvalue", none, 104)];
    add("bpf_struct_ops_map", 104, &ops);
    add("bpf_link", 8, &[("prog", u64_, 0)]);
    let arena = [("user_vm_start", u64_, after), ("user_vm_end", u64_, 88), ("kern_vm", u64_, 96)];
    add("bpf_arena", 104, &arena);
    add("vm_struct", 16, &[("addr", u64_, 8)]);
    let object = [
        ("data", u64_, 0),
        ("data_size", u32_, 8),
        ("id", u32_, 12),
        ("base_btf", u64_, 16),
        ("name", name, 24),
    ];
    add("btf", 40, &object);
    let prog = [
        ("len", u32_, 0),
        ("type", u32_, 4),
        ("tag", tag, 8),
        ("stats", u64_, 16),
        ("aux", u64_, 24),
        ("jited", u32_, 32),
        ("sleepable", u32_, 36),
        ("insnsi", none, 40),
    ];
    add("bpf_prog", 40, &prog);
    let aux = [
        ("id", u32_, 0),
        ("verified_insns", u32_, 4),
        ("name", name, 8),
        ("load_time", u64_, 24),
        ("btf", u64_, 32),
        ("func_info", u64_, 40),
        ("func_info_cnt", u32_, 48),
        ("used_map_cnt", u32_, 52),
        ("used_maps", u64_, 56),
        ("attach_func_name", u64_, 64),
    ];
    add("bpf_prog_aux", 72, &aux);
    add("bpf_prog_stats", 24, &[("cnt", u64_, 0), ("nsecs", u64_, 8), ("misses", u64_, 16)]);
    add("cgroup", 8, &[("kn", u64_, 0)]);
    add("kernfs_node", 16, &[("id", u64_, 0), ("name", u64_, 8)]);
}

/// A program's object: `struct item { u64 first; struct item *next; u32 small[2]; }`.
pub fn object() -> Vec<u8> {
    let mut btf = BtfWriter::new();
    let u64_ = btf.int("u64", 8, false);
    let u32_ = btf.int("u32", 4, false);
    let pair = btf.array(u32_, u32_, 2);
    let to = btf.next_id() + 1;
    let pointer = btf.pointer(to);
    btf.structure("item", 24, &[("first", u64_, 0), ("next", pointer, 64), ("small", pair, 128)]);
    btf.section()
}
