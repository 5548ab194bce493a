//! Which fields of the kernel's structures the programs read, under which names kernels have them, and finding their
//! offsets in the running kernel's [`Btf`].
//!
//! Owns the table of names. An offset that is not found stays [`ABSENT`]; what follows from that is decided where the
//! capabilities are (`capability`).

use kwitness_abi::{ABSENT, KernelLayout};
use kwitness_btf::Btf;

/// A field of a structure of the kernel that programs read.
#[derive(Debug)]
pub struct Field {
    structure: &'static str,
    /// Its names, the newest kernel's first.
    names: &'static [&'static str],
    slot: fn(&mut KernelLayout) -> &mut u32,
}

impl Field {
    /// `structure.name` as the newest kernels have it.
    pub fn name(&self) -> String {
        format!("{}.{}", self.structure, self.names[0])
    }
}

macro_rules! fields {
    ($($constant:ident $slot:ident $structure:literal: $($name:literal)|+;)*) => {
        $(
            #[doc = concat!("[`KernelLayout::", stringify!($slot), "`]")]
            pub static $constant: Field = Field {
                structure: $structure,
                names: &[$($name),+],
                slot: |layout| &mut layout.$slot,
            };
        )*
        static FIELDS: &[&Field] = &[$(&$constant),*];
    };
}

fields! {
    TASK_CGROUPS task_cgroups "task_struct": "cgroups";
    TASK_TGID task_tgid "task_struct": "tgid";
    TASK_PID task_pid "task_struct": "pid";
    TASK_REAL_PARENT task_real_parent "task_struct": "real_parent";
    TASK_GROUP_LEADER task_group_leader "task_struct": "group_leader";
    TASK_START_BOOTTIME task_start_boottime "task_struct": "start_boottime";
    TASK_NSPROXY task_nsproxy "task_struct": "nsproxy";
    TASK_SIGNAL task_signal "task_struct": "signal";
    TASK_EXIT_CODE task_exit_code "task_struct": "exit_code";
    TASK_COMM task_comm "task_struct": "comm";
    TASK_CRED task_cred "task_struct": "cred";
    CRED_FSUID cred_fsuid "cred": "fsuid";
    TASK_THREAD_PID task_thread_pid "task_struct": "thread_pid";
    PID_LEVEL pid_level "pid": "level";
    PID_NUMBERS pid_numbers "pid": "numbers";
    UPID_NR upid_nr "upid": "nr";
    UPID_NS upid_ns "upid": "ns";
    PID_NAMESPACE_INUM pid_namespace_inum "pid_namespace": "ns.inum";
    SIGNAL_LIVE signal_live "signal_struct": "live";
    SIGNAL_FLAGS signal_flags "signal_struct": "flags";
    SIGNAL_GROUP_EXIT_CODE signal_group_exit_code "signal_struct": "group_exit_code";
    NSPROXY_MNT_NS nsproxy_mnt_ns "nsproxy": "mnt_ns";
    MNT_NAMESPACE_INUM mnt_namespace_inum "mnt_namespace": "ns.inum";
    CSS_SET_DFL_CGRP css_set_dfl_cgrp "css_set": "dfl_cgrp";
    CGROUP_KN cgroup_kn "cgroup": "kn";
    CGROUP_ROOT cgroup_root "cgroup": "root";
    CGROUP_LEVEL cgroup_level "cgroup": "level";
    CGROUP_ROOT_HIERARCHY_ID cgroup_root_hierarchy_id "cgroup_root": "hierarchy_id";
    KERNFS_NODE_ID kernfs_node_id "kernfs_node": "id";
    KERNFS_NODE_NAME kernfs_node_name "kernfs_node": "name";
    KERNFS_NODE_PARENT kernfs_node_parent "kernfs_node": "__parent" | "parent";
    BINPRM_FILENAME binprm_filename "linux_binprm": "filename";
    EXEC_EVENT_FILENAME exec_event_filename "trace_event_raw_sched_process_exec": "__data_loc_filename";
    EXIT_EVENT_GROUP_DEAD exit_event_group_dead "trace_event_raw_sched_process_exit": "group_dead";
    OPEN_FILE_KN open_file_kn "kernfs_open_file": "kn";
    KERNFS_NODE_PRIV kernfs_node_priv "kernfs_node": "priv";
    OOM_MEMCG oom_memcg "oom_control": "memcg";
    OOM_CHOSEN oom_chosen "oom_control": "chosen";
    MEMCG_CGROUP memcg_cgroup "mem_cgroup": "css.cgroup";
    MEMCG_USAGE memcg_usage "mem_cgroup": "memory.usage";
    MEMCG_MAX memcg_max "mem_cgroup": "memory.max";
    REGS_FIRST regs_first "pt_regs": "di";
    REGS_SECOND regs_second "pt_regs": "si";
    REGS_THIRD regs_third "pt_regs": "dx";
    REGS_RESULT regs_result "pt_regs": "ax";
    TASK_FILES task_files "task_struct": "files";
    FILES_FDT files_fdt "files_struct": "fdt";
    FDTABLE_FD fdtable_fd "fdtable": "fd";
    FDTABLE_MAX_FDS fdtable_max_fds "fdtable": "max_fds";
    FILE_INODE file_inode "file": "f_inode";
    INODE_SB inode_sb "inode": "i_sb";
    INODE_PRIVATE inode_private "inode": "i_private";
    SUPER_BLOCK_MAGIC super_block_magic "super_block": "s_magic";
    SYS_ENTER_ARGS sys_enter_args "trace_event_raw_sys_enter": "args";
    SYS_EXIT_RET sys_exit_ret "trace_event_raw_sys_exit": "ret";
    TASK_FLAGS task_flags "task_struct": "flags";
    MEMCG_MEMORY memcg_memory "mem_cgroup": "memory";
    MEMCG_SERIAL memcg_serial "mem_cgroup": "css.serial_nr";
    COUNTER_USAGE counter_usage "page_counter": "usage";
    COUNTER_MAX counter_max "page_counter": "max";
    COUNTER_PARENT counter_parent "page_counter": "parent";
}

/// Fields behind "which id has this process in that pid namespace", unless it is the initial one.
pub static PID_FIELDS: [&Field; 6] =
    [&TASK_THREAD_PID, &PID_LEVEL, &PID_NUMBERS, &UPID_NR, &UPID_NS, &PID_NAMESPACE_INUM];

/// Finds every field's offset, and which tracepoint passes what.
pub fn resolve(btf: &Btf<'_>) -> KernelLayout {
    let mut layout = KernelLayout::UNKNOWN;
    for field in FIELDS {
        let offset = field.names.iter().find_map(|name| btf.member_offset(field.structure, name));
        *(field.slot)(&mut layout) = offset.unwrap_or(ABSENT);
    }
    // `sched_process_exit(task)` became `(task, group_dead)` in 6.16.
    layout.exit_has_group_dead =
        u32::from(btf.tracepoint_args("sched_process_exit").is_some_and(|args| args >= 2));
    // arm64 passes arguments and results in an array of registers.
    if let Some(regs) = btf.member_offset("pt_regs", "regs") {
        (layout.regs_first, layout.regs_second, layout.regs_third) = (regs, regs + 8, regs + 16);
        layout.regs_result = regs;
    }
    layout
}

/// Those of `fields` that the kernel does not have under any known name.
pub fn missing(layout: &KernelLayout, fields: &[&Field]) -> Vec<String> {
    let mut layout = *layout;
    fields.iter().filter(|field| *(field.slot)(&mut layout) == ABSENT).map(|field| field.name()).collect()
}

#[cfg(test)]
mod tests {
    use kwitness_btf::BTF_PATH;

    use super::*;
    use crate::probe::capability::CAPABILITIES;

    /// The kernel that the tests run on has everything that the programs need.
    #[test]
    fn the_running_kernel_has_every_field() {
        let bytes = std::fs::read(BTF_PATH).unwrap();
        let layout = resolve(&Btf::parse(&bytes).unwrap());
        assert_eq!(missing(&layout, &PID_FIELDS), Vec::<String>::new());
        for capability in &CAPABILITIES {
            assert_eq!(missing(&layout, capability.fields), Vec::<String>::new(), "{}", capability.name);
        }
    }
}
