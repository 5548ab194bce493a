//! Where the running kernel has the fields that the programs read. Owns the list of them; never an offset itself.

/// An offset that the running kernel's BTF does not have.
pub const ABSENT: u32 = u32::MAX;

/// Offsets, in bytes, of the kernel's fields that the programs read; user space fills them in from BTF.
///
/// A program that needs an [`ABSENT`] offset is not loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct KernelLayout {
    /// `task_struct.cgroups`
    pub task_cgroups: u32,
    /// `task_struct.tgid`
    pub task_tgid: u32,
    /// `task_struct.pid`
    pub task_pid: u32,
    /// `task_struct.real_parent`
    pub task_real_parent: u32,
    /// `task_struct.group_leader`
    pub task_group_leader: u32,
    /// `task_struct.start_boottime`
    pub task_start_boottime: u32,
    /// `task_struct.nsproxy`
    pub task_nsproxy: u32,
    /// `task_struct.signal`
    pub task_signal: u32,
    /// `task_struct.exit_code`
    pub task_exit_code: u32,
    /// `task_struct.comm`
    pub task_comm: u32,
    /// `task_struct.cred`
    pub task_cred: u32,
    /// `task_struct.thread_pid`
    pub task_thread_pid: u32,
    /// `pid.level`: how deep its pid namespace is; the initial one is 0
    pub pid_level: u32,
    /// `pid.numbers`: a `struct upid` for each namespace that has it, the initial one's first
    pub pid_numbers: u32,
    /// `upid.nr`
    pub upid_nr: u32,
    /// `upid.ns`, the last field
    pub upid_ns: u32,
    /// `pid_namespace.ns.inum`
    pub pid_namespace_inum: u32,
    /// `cred.fsuid`: the owner of what the task makes
    pub cred_fsuid: u32,
    /// `signal_struct.live`
    pub signal_live: u32,
    /// `signal_struct.flags`
    pub signal_flags: u32,
    /// `signal_struct.group_exit_code`
    pub signal_group_exit_code: u32,
    /// `nsproxy.mnt_ns`
    pub nsproxy_mnt_ns: u32,
    /// `mnt_namespace.ns.inum`
    pub mnt_namespace_inum: u32,
    /// `css_set.dfl_cgrp`
    pub css_set_dfl_cgrp: u32,
    /// `cgroup.kn`
    pub cgroup_kn: u32,
    /// `cgroup.root`
    pub cgroup_root: u32,
    /// `cgroup.level`
    pub cgroup_level: u32,
    /// `cgroup_root.hierarchy_id`; 0 is the default (v2) hierarchy
    pub cgroup_root_hierarchy_id: u32,
    /// `kernfs_node.id`
    pub kernfs_node_id: u32,
    /// `kernfs_node.name`
    pub kernfs_node_name: u32,
    /// `kernfs_node.__parent`, `parent` before 6.15
    pub kernfs_node_parent: u32,
    /// `linux_binprm.filename`
    pub binprm_filename: u32,
    /// Not an offset: 1 if the second argument of `sched_process_exit` is `bool group_dead`, as since 6.16, otherwise 0.
    /// Without it, "the last thread" is found out from `signal_struct.live`.
    pub exit_has_group_dead: u32,
    /// `trace_event_raw_sched_process_exec.__data_loc_filename`
    pub exec_event_filename: u32,
    /// `trace_event_raw_sched_process_exit.group_dead`, which kernels before 6.16 do not have: then as above
    pub exit_event_group_dead: u32,
    /// `kernfs_open_file.kn`
    pub open_file_kn: u32,
    /// `kernfs_node.priv`: of a cgroup's directory, the cgroup
    pub kernfs_node_priv: u32,
    /// `oom_control.memcg`
    pub oom_memcg: u32,
    /// `oom_control.chosen`
    pub oom_chosen: u32,
    /// `mem_cgroup.css.cgroup`
    pub memcg_cgroup: u32,
    /// `mem_cgroup.memory.usage`
    pub memcg_usage: u32,
    /// `mem_cgroup.memory.max`
    pub memcg_max: u32,
    /// `pt_regs.di`, or `regs` on arm64: a function's first argument
    pub regs_first: u32,
    /// `pt_regs.si`, or the second of `regs` on arm64: a function's second argument
    pub regs_second: u32,
    /// `pt_regs.dx`, or the third of `regs` on arm64: a function's third argument
    pub regs_third: u32,
    /// `pt_regs.ax`, or the first of `regs` on arm64: what a function returned
    pub regs_result: u32,
    /// `task_struct.files`
    pub task_files: u32,
    /// `files_struct.fdt`
    pub files_fdt: u32,
    /// `fdtable.fd`
    pub fdtable_fd: u32,
    /// `fdtable.max_fds`
    pub fdtable_max_fds: u32,
    /// `file.f_inode`
    pub file_inode: u32,
    /// `inode.i_sb`
    pub inode_sb: u32,
    /// `inode.i_private`: of a file of kernfs, its node
    pub inode_private: u32,
    /// `super_block.s_magic`
    pub super_block_magic: u32,
    /// `trace_event_raw_sys_enter.args`
    pub sys_enter_args: u32,
    /// `trace_event_raw_sys_exit.ret`
    pub sys_exit_ret: u32,
    /// `task_struct.flags`
    pub task_flags: u32,
    /// `mem_cgroup.memory`: its `page_counter`
    pub memcg_memory: u32,
    /// `mem_cgroup.css.serial_nr`
    pub memcg_serial: u32,
    /// `page_counter.usage`
    pub counter_usage: u32,
    /// `page_counter.max`
    pub counter_max: u32,
    /// `page_counter.parent`
    pub counter_parent: u32,
}

impl KernelLayout {
    /// A layout of which nothing is known.
    pub const UNKNOWN: Self = Self {
        task_cgroups: ABSENT,
        task_tgid: ABSENT,
        task_pid: ABSENT,
        task_real_parent: ABSENT,
        task_group_leader: ABSENT,
        task_start_boottime: ABSENT,
        task_nsproxy: ABSENT,
        task_signal: ABSENT,
        task_exit_code: ABSENT,
        task_comm: ABSENT,
        task_cred: ABSENT,
        task_thread_pid: ABSENT,
        pid_level: ABSENT,
        pid_numbers: ABSENT,
        upid_nr: ABSENT,
        upid_ns: ABSENT,
        pid_namespace_inum: ABSENT,
        cred_fsuid: ABSENT,
        signal_live: ABSENT,
        signal_flags: ABSENT,
        signal_group_exit_code: ABSENT,
        nsproxy_mnt_ns: ABSENT,
        mnt_namespace_inum: ABSENT,
        css_set_dfl_cgrp: ABSENT,
        cgroup_kn: ABSENT,
        cgroup_root: ABSENT,
        cgroup_level: ABSENT,
        cgroup_root_hierarchy_id: ABSENT,
        kernfs_node_id: ABSENT,
        kernfs_node_name: ABSENT,
        kernfs_node_parent: ABSENT,
        binprm_filename: ABSENT,
        exit_has_group_dead: 0,
        exec_event_filename: ABSENT,
        exit_event_group_dead: ABSENT,
        open_file_kn: ABSENT,
        kernfs_node_priv: ABSENT,
        oom_memcg: ABSENT,
        oom_chosen: ABSENT,
        memcg_cgroup: ABSENT,
        memcg_usage: ABSENT,
        memcg_max: ABSENT,
        regs_first: ABSENT,
        regs_second: ABSENT,
        regs_third: ABSENT,
        regs_result: ABSENT,
        task_files: ABSENT,
        files_fdt: ABSENT,
        fdtable_fd: ABSENT,
        fdtable_max_fds: ABSENT,
        file_inode: ABSENT,
        inode_sb: ABSENT,
        inode_private: ABSENT,
        super_block_magic: ABSENT,
        sys_enter_args: ABSENT,
        sys_exit_ret: ABSENT,
        task_flags: ABSENT,
        memcg_memory: ABSENT,
        memcg_serial: ABSENT,
        counter_usage: ABSENT,
        counter_max: ABSENT,
        counter_parent: ABSENT,
    };
}

const _: () = assert!(size_of::<KernelLayout>() == 62 * 4);
