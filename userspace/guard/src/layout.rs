//! Where the running kernel has the fields that the program reads. Owns the table of names.

use kwitness_abi::{ABSENT, GuardLayout};
use kwitness_btf::Btf;

/// `structure.path`, and its place in the layout.
type Field = (&'static str, &'static str, fn(&mut GuardLayout) -> &mut u32);

/// Without any of these the program is not loaded.
const FIELDS: &[Field] = &[
    ("mem_cgroup", "memory", |layout| &mut layout.memcg_memory),
    ("mem_cgroup", "css", |layout| &mut layout.memcg_css),
    ("mem_cgroup", "css.cgroup", |layout| &mut layout.memcg_cgroup),
    ("mem_cgroup", "css.parent", |layout| &mut layout.memcg_parent),
    ("mem_cgroup", "css.children", |layout| &mut layout.memcg_children),
    ("mem_cgroup", "css.sibling", |layout| &mut layout.memcg_sibling),
    ("mem_cgroup", "nodeinfo", |layout| &mut layout.memcg_nodeinfo),
    ("mem_cgroup_per_node", "lru_zone_size", |layout| &mut layout.per_node_lru_zone_size),
    ("mem_cgroup_per_node", "iter", |layout| &mut layout.per_node_iter),
    ("page_counter", "usage", |layout| &mut layout.counter_usage),
    ("page_counter", "max", |layout| &mut layout.counter_max),
    ("page_counter", "parent", |layout| &mut layout.counter_parent),
    ("cgroup", "kn", |layout| &mut layout.cgroup_kn),
    ("kernfs_node", "id", |layout| &mut layout.kernfs_node_id),
    ("task_struct", "flags", |layout| &mut layout.task_flags),
    ("task_struct", "ptrace", |layout| &mut layout.task_ptrace),
    ("task_struct", "signal", |layout| &mut layout.task_signal),
    ("task_struct", "tgid", |layout| &mut layout.task_tgid),
    ("task_struct", "group_leader", |layout| &mut layout.task_group_leader),
    ("task_struct", "real_parent", |layout| &mut layout.task_real_parent),
    ("task_struct", "start_boottime", |layout| &mut layout.task_start_boottime),
    ("task_struct", "thread_pid", |layout| &mut layout.task_thread_pid),
    ("signal_struct", "tty", |layout| &mut layout.signal_tty),
    ("pid", "level", |layout| &mut layout.pid_level),
    ("pid", "numbers", |layout| &mut layout.pid_numbers),
    ("upid", "nr", |layout| &mut layout.upid_nr),
    ("upid", "ns", |layout| &mut layout.upid_ns),
];

/// The memory nodes that there can be: "0" or "0-3".
const NODES: &str = "/sys/devices/system/node/possible";

/// How many memory nodes there can be (`nr_node_ids`). One where the kernel has no NUMA, and so no such file.
pub fn nodes() -> u32 {
    std::fs::read_to_string(NODES).ok().and_then(|text| nodes_in(&text)).unwrap_or(1)
}

fn nodes_in(text: &str) -> Option<u32> {
    let last = text.trim().rsplit([',', '-']).next()?;
    last.parse::<u32>().ok()?.checked_add(1)
}

/// Finds every field, or names those that this kernel does not have. `nodes`: see [`nodes`].
pub fn resolve(btf: &Btf<'_>, nodes: u32) -> Result<GuardLayout, Vec<String>> {
    let mut layout = GuardLayout { nodes, ..GuardLayout::UNKNOWN };
    let mut missing = Vec::new();
    for (structure, path, slot) in FIELDS {
        match btf.member_offset(structure, path) {
            Some(offset) => *slot(&mut layout) = offset,
            None => missing.push(format!("{structure}.{path}")),
        }
    }
    if !missing.is_empty() {
        return Err(missing);
    }
    // x86-64 names its registers, arm64 has them in an array.
    let array = btf.member_offset("pt_regs", "regs");
    let register =
        |name, index: u32| array.map(|regs| regs + 8 * index).or_else(|| btf.member_offset("pt_regs", name));
    layout.regs_first = register("di", 0).unwrap_or(ABSENT);
    layout.regs_second = register("si", 1).unwrap_or(ABSENT);
    Ok(layout)
}

#[cfg(test)]
mod tests {
    use kwitness_btf::BTF_PATH;

    use super::*;

    #[test]
    fn nodes_are_counted_from_the_last_possible_one() {
        for (text, count) in
            [("0\n", Some(1)), ("0-3\n", Some(4)), ("0,2-5\n", Some(6)), ("\n", None), ("x", None)]
        {
            assert_eq!(nodes_in(text), count, "{text:?}");
        }
    }

    /// The kernel that the tests run on has everything that the program needs.
    #[test]
    fn the_running_kernel_has_every_field() {
        let bytes = std::fs::read(BTF_PATH).unwrap();
        let layout = resolve(&Btf::parse(&bytes).unwrap(), nodes()).unwrap();
        assert!(layout.per_node_iter > layout.per_node_lru_zone_size, "the one follows the other");
        assert_ne!((layout.regs_first, layout.regs_second), (ABSENT, ABSENT));
    }
}
