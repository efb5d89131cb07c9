//! What `scx-ktstr/src/bpf/plant.h` promises, said a second time.

/// Values that are the same in every run: map, path, and the value as people see it.
pub const VALUES: &[(&str, &str, &str)] = &[
    ("plant_bp.rodata", "plant_constant", "12648430"),
    ("plant_bp.rodata", "plant_greeting", "\"planted by scx-ktstr\""),
    ("plant_bp.data", "plant_scalars.u8v", "200"),
    ("plant_bp.data", "plant_scalars.s8v", "-100"),
    ("plant_bp.data", "plant_scalars.u16v", "60000"),
    ("plant_bp.data", "plant_scalars.s16v", "-30000"),
    ("plant_bp.data", "plant_scalars.u32v", "4000000000"),
    ("plant_bp.data", "plant_scalars.s32v", "-2000000000"),
    ("plant_bp.data", "plant_scalars.u64v", "18364758544493064720 (0xfedcba9876543210)"),
    ("plant_bp.data", "plant_scalars.s64v", "-81985529216486895"),
    ("plant_bp.data", "plant_scalars.yes", "true"),
    ("plant_bp.data", "plant_scalars.letter", "'k'"),
    ("plant_bp.data", "plant_scalars.colour", "PLANT_BLUE (-3)"),
    ("plant_bp.data", "plant_scalars.unknown", "77 (no such enumerator)"),
    ("plant_bp.data", "plant_scalars.wide", "PLANT_WIDE (1311768467463790320)"),
    (
        "plant_bp.data",
        "plant_scalars.bits",
        "{three = 5, thirteen = 4242, minus = -7, forty = 591292919553 (0x89abcdef01), last = 1}",
    ),
    ("plant_bp.data", "plant_scalars.bits.minus", "-7"),
    ("plant_bp.data", "plant_scalars.bits.forty", "591292919553 (0x89abcdef01)"),
    (
        "plant_bp.data",
        "plant_scalars.either",
        "{number = 4325399, {low = 23, high = 66}, bytes = [[0] = 23, [1] = 0, [2] = 66, [3..7] = 0]}",
    ),
    ("plant_bp.data", "plant_scalars.either.high", "66"),
    ("plant_bp.data", "plant_scalars.points", "[{x = 1, y = -1}, {x = 20, y = -20}, {x = 300, y = -300}]"),
    ("plant_bp.data", "plant_scalars.points[2].y", "-300"),
    ("plant_bp.data", "plant_scalars.grid", "[[1, 2, 3, 4], [5, 6, 7, 8]]"),
    ("plant_bp.data", "plant_scalars.grid[1][2]", "7"),
    ("plant_bp.data", "plant_scalars.text", "\"forty-two\""),
    ("plant_bp.data", "plant_scalars.zeroes", "[[0..99] = 0]"),
    ("plant_bp.bss", "plant_done", "1"),
    ("plant_casts", "[2].cookie", "12586014"),
    ("plant_casts", "[2].plain", "123456789"),
    // Numbers, whatever they look like.
    ("plant_casts", "[2].mixed", "19088743"),
    // Pointers along the path, typed and not.
    ("plant_bp.bss", "plant_list->next->next->payload[2]", "8"),
    ("plant_casts", "[2].node->id", "100"),
    ("plant_casts", "[2].node->next->next->next->next->payload", "[4, 16, 64]"),
    ("plant_casts", "[2].joined->sum", "3"),
    ("plant_casts", "[2].second->id", "101"),
    ("plant_bp.bss", "plant_list_number->id", "100"),
    ("plant_bp.bss", "plant_ring_of_nodes->next->id", "501"),
    ("plant_casts", "[2].task->comm", "\"scx-ktstr\""),
    ("plant_percpu", "[1]@1.x", "2001"),
    ("plant_hash", "[{5,50}].square", "25"),
    ("plant_lru", "[1006]", "216"),
    ("plant_pcpu_hash", "[0x1122334455667788]@1", "5001"),
    ("main_bpf.rodata", "slice_ns", "20000000"),
    ("main_bpf.data", "ktstr_magic", "7742940603328966705 (0x6b747374725f3031)"),
];

/// Whole maps, sorted by line: (map, lines).
pub const MAPS: &[(&str, &[&str])] = &[
    ("plant_arena", &["pages 0..2"]),
    (
        "plant_percpu",
        &[
            "[0]@0 = {x = 1000, y = 0}",
            "[0]@1 = {x = 1001, y = -1}",
            "[1]@0 = {x = 2000, y = 0}",
            "[1]@1 = {x = 2001, y = -1}",
            "[2]@0 = {x = 3000, y = 0}",
            "[2]@1 = {x = 3001, y = -1}",
        ],
    ),
    (
        "plant_hash",
        &[
            "[{group = 0, member = 0, padding = 0}] = {square = 0, at = {x = 0, y = 0}, tag = \"tag0\"}",
            "[{group = 1, member = 10, padding = 0}] = {square = 1, at = {x = 1, y = -1}, tag = \"tag1\"}",
            "[{group = 2, member = 20, padding = 0}] = {square = 4, at = {x = 2, y = -2}, tag = \"tag2\"}",
            "[{group = 3, member = 30, padding = 0}] = {square = 9, at = {x = 3, y = -3}, tag = \"tag3\"}",
            "[{group = 4, member = 40, padding = 0}] = {square = 16, at = {x = 4, y = -4}, tag = \"tag4\"}",
            "[{group = 5, member = 50, padding = 0}] = {square = 25, at = {x = 5, y = -5}, tag = \"tag5\"}",
            "[{group = 6, member = 60, padding = 0}] = {square = 36, at = {x = 6, y = -6}, tag = \"tag6\"}",
        ],
    ),
    (
        "plant_lru",
        &[
            "[1000] = 0",
            "[1001] = 1",
            "[1002] = 8",
            "[1003] = 27",
            "[1004] = 64",
            "[1005] = 125",
            "[1006] = 216",
        ],
    ),
    (
        "plant_pcpu_hash",
        &[
            "[1234605616436508552 (0x1122334455667788)]@0 = 5000",
            "[1234605616436508552 (0x1122334455667788)]@1 = 5001",
        ],
    ),
    ("plant_cgroups", &["[1] cgroup \"\" = {x = 77, y = -78}"]),
    (
        "plant_ring",
        &[
            "[0] unread = 24 bytes 010000000b000000 6f00000000000000 5704000000000000",
            "[32] discarded = 40 bytes 0000000000000000 0000000000000000 0000000000000000 \
             0000000000000000 0000000000000000",
            "[80] unread = 24 bytes 0200000016000000 6f00000000000000 5704000000000000",
        ],
    ),
];

/// The numbers that are pointers and are found: (structure or section, member, what it points at).
pub const CASTS: &[(&str, &str, &str)] = &[
    (".bss", "plant_list_number", "plant_node"),
    ("plant_args", "task", "task_struct"),
    ("plant_casts", "joined", "plant_node"),
    ("plant_casts", "node", "plant_node"),
    ("plant_casts", "second", "plant_node"),
    ("plant_casts", "task", "task_struct"),
];

/// Numbers that are pointers, too, and stay numbers: nothing in the object proves what they point at.
/// Every other number of the object is one.
pub const MISSED: &[(&str, &str, &str)] = &[
    ("plant_args", "first_node", "plant_node"),
    ("plant_casts", "leaf", "plant_leaf"),
    ("plant_task", "leaf", "plant_leaf"),
];
