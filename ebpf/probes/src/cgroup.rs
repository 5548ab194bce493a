//! The life of cgroups, and the tracked set.
//!
//! A cgroup becomes tracked here, before anything can enter it: in [`mkdir`], because its parent is tracked or because it
//! is a root (see [`is_configured`]) in the watched subtree ([`SUBTREE`]). It stops being tracked in [`release`], when the last
//! reference to it is gone: between rmdir(2) and that, dying processes may still be in it.
//!
//! The set is shared by all workloads. So the groups *in* a container have a share of it, by the rule of [`may_track`]; one more is
//! reported, as the container's, and not tracked. Which container that is, is read off names as `cgroup_path` of the core does, but
//! more simply: a container's ends with an id of 64 hexadecimal digits. What wrongly counts as a container has a share to itself.

use core::{mem::MaybeUninit, ptr};

use aya_ebpf::maps::lpm_trie::Key;
use aya_log_ebpf::{debug, warn};
use kwitness_abi::{
    CgroupAttach, CgroupMkdir, CgroupPopulated, CgroupRemoved, FLAG_BEYOND_SHARE, FLAG_NAME_ONLY, FLAG_ROOT,
    HIERARCHY_ROOT, PATH_CAP, PATTERN_CAP, RecordKind, SHARES, TRACKED_CONTAINED, TRACKED_COUNTED,
    TRACKED_POD, TRACKED_STARTED, Tracked, container_number, is_hexadecimal, may_track, share_of,
};

use crate::{
    emit::{actor, copy_string, header},
    kernel::{Address, Arguments, Cgroup, KernfsNode, Task, word_at},
    maps::{ANCESTORS, ROOTS, Ring, TRACKED, count_tracked, count_untracked, held, reserve_in},
};

/// What the kubelet calls the cgroup that its pods are in; with another `cgroupRoot`, `<root>-kubepods.slice`.
const KUBEPODS: u64 = u64::from_be_bytes(*b"kubepods");

/// root, in the initial user namespace.
const ROOT_UID: u32 = 0;

/// Hexadecimal digits of a container's id.
const ID_DIGITS: usize = 64;
/// What systemd has at the end of a container's name, after two bytes of that.
const SCOPE: &[u8; 8] = b"\0\0.scope";

/// `EEXIST`, as a helper returns it, and `BPF_NOEXIST`.
const EXISTS: i32 = -17;
const NEW: u64 = 1;

/// How many levels above a root are kept. `kubepods` is at most a few below the hierarchy's root.
const MAX_ANCESTORS: u32 = 8;

/// How many levels are walked up from a cgroup: what the verifier allows, and far more than any node has.
const MAX_DEPTH: u32 = 64;

/// Bytes of the longest name of a directory, the terminating NUL included.
const NAME_CAP: usize = 256;

/// The top of what user space sees of the hierarchy, by its id: paths begin there, and what is above is none of its business.
/// That of a node which is itself a container is the node's own cgroup. Filled in by the loader.
#[unsafe(no_mangle)]
static TOP: u64 = HIERARCHY_ROOT;

/// The cgroup below which roots are looked for, by its id; [`HIERARCHY_ROOT`]: anywhere. Filled in by the loader.
#[unsafe(no_mangle)]
static SUBTREE: u64 = HIERARCHY_ROOT;

/// How many cgroups [`TRACKED`] has room for. Filled in by the loader.
#[unsafe(no_mangle)]
static CAPACITY: u32 = 65_536;

/// `cgroup_mkdir(cgroup, path)`: the cgroup exists, nothing is in it yet.
#[inline(always)]
pub fn mkdir(hook: &impl Arguments) {
    let cgroup = cgroup(hook);
    if !cgroup.is_v2() {
        return;
    }
    let node = cgroup.node();
    let path = path_from_top(&node, hook.arg(1));
    let parent_id = node.parent_id();
    // SAFETY: a live map element.
    let parent = TRACKED.get_ptr(parent_id).map(|parent| unsafe { *parent });
    let Some((tracked, mut flags)) = tracked_below(parent, &node, path) else { return };
    if flags & FLAG_ROOT != 0 {
        remember_ancestors(&node);
    }
    let id = node.id();
    let share = counted(&tracked);
    if share.is_some_and(|share| !may_track(held(share), held(SHARES), capacity())) {
        debug!(hook, "cgroup {} below {} is beyond the container's share", id, parent_id);
        flags |= FLAG_BEYOND_SHARE;
    } else {
        match TRACKED.insert(id, tracked, NEW) {
            Ok(()) => count_tracked(share, 1),
            // A scan was faster, and has counted it.
            Err(EXISTS) => {}
            Err(_) => {
                warn!(hook, "no room to track cgroup {} below {}", id, parent_id);
                return count_untracked();
            }
        }
        debug!(hook, "cgroup {} is tracked, below {}", id, parent_id);
    }
    let Some(mut entry) = reserve_in::<CgroupMkdir>(Ring::Lifecycle, RecordKind::CgroupMkdir, &tracked)
    else {
        return;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: `record` points to the reserved memory; every field is written, `path` up to its NUL.
    unsafe {
        (*record).header = header(RecordKind::CgroupMkdir, id, flags);
        (*record).parent_id = parent_id;
        (*record).actor = actor();
        (*record).level = cgroup.level();
        let target = (&raw mut (*record).path).cast::<u8>();
        let mut length = copy_string::<PATH_CAP>(path, target);
        if length == 0 || length as usize >= PATH_CAP - 1 {
            (*record).header.flags = flags | FLAG_NAME_ONLY;
            length = copy_string::<PATH_CAP>(node.name(), target);
        }
        (*record).path_len = length;
    }
    entry.submit(0);
}

/// `cgroup_rmdir(cgroup, path)`: its directory is gone.
#[inline(always)]
pub fn rmdir(hook: &impl Arguments) {
    let cgroup = cgroup(hook);
    if !cgroup.is_v2() {
        return;
    }
    let id = cgroup.node().id();
    if let Some(tracked) = TRACKED.get_ptr(id) {
        // SAFETY: a live map element.
        removed(RecordKind::CgroupRmdir, id, unsafe { &*tracked });
    }
}

/// `cgroup_release(cgroup, path)`: nothing refers to it any more.
#[inline(always)]
pub fn release(hook: &impl Arguments) {
    let cgroup = cgroup(hook);
    if !cgroup.is_v2() {
        return;
    }
    let id = cgroup.node().id();
    // SAFETY: a live map element.
    let tracked = TRACKED.get_ptr(id).map_or(Tracked::default(), |tracked| unsafe { *tracked });
    if TRACKED.remove(id).is_ok() {
        count_tracked(counted(&tracked), -1);
        debug!(hook, "cgroup {} is tracked no more", id);
        removed(RecordKind::CgroupRelease, id, &tracked);
    } else {
        let _ = ANCESTORS.remove(id);
    }
}

/// What is kept of a new cgroup, by what is kept of its parent, with [`FLAG_ROOT`] where that holds; none: it is not tracked.
#[inline(always)]
fn tracked_below(parent: Option<Tracked>, node: &KernfsNode, path: Address) -> Option<(Tracked, u16)> {
    const SETTLED: u32 = TRACKED_POD | TRACKED_CONTAINED;
    let mut new = parent.unwrap_or_default();
    new.flags &= TRACKED_STARTED | SETTLED;
    if new.flags & SETTLED == SETTLED {
        new.flags |= TRACKED_COUNTED;
        return Some((new, 0));
    }
    let mut key = Key::new(0, [0; PATTERN_CAP]);
    // SAFETY: `data` has `PATTERN_CAP` bytes.
    let length = unsafe { copy_string::<PATTERN_CAP>(node.name(), (&raw mut key.data).cast()) };
    let is_of_pods = is_kubepods(&key.data) && Task::current().fsuid() == ROOT_UID;
    if parent.is_none() && !((is_of_pods || is_configured(&mut key, length, path)) && is_in_subtree(node)) {
        return None;
    }
    if is_of_pods {
        new.flags |= TRACKED_POD;
    }
    let may_be_container = new.flags & TRACKED_CONTAINED == 0 || new.flags & TRACKED_POD != 0;
    if may_be_container && is_container(node.name(), length as usize) {
        new = Tracked { flags: new.flags | TRACKED_CONTAINED, container: container_number(node.id()) };
    } else if new.flags & TRACKED_CONTAINED != 0 {
        new.flags |= TRACKED_COUNTED;
    }
    Some((new, if parent.is_none() { FLAG_ROOT } else { 0 }))
}

/// The share that a cgroup is counted in; none, if it lies in no container.
#[inline(always)]
fn counted(tracked: &Tracked) -> Option<u32> {
    (tracked.flags & TRACKED_COUNTED != 0).then_some(share_of(tracked.container))
}

#[inline(always)]
fn capacity() -> u32 {
    // SAFETY: a static of this program; volatile, as in [`is_in_subtree`].
    unsafe { ptr::read_volatile(&raw const CAPACITY) }
}

#[inline(always)]
fn top() -> u64 {
    // SAFETY: as above.
    unsafe { ptr::read_volatile(&raw const TOP) }
}

/// From [`TOP`] on, the path of a cgroup whose path from the root of the hierarchy is `path`; null, if the cgroup does not lie
/// below, or too deep.
#[inline(always)]
fn path_from_top(node: &KernfsNode, path: Address) -> Address {
    let top = top();
    if top == HIERARCHY_ROOT {
        return path;
    }
    let mut is_below = false;
    // Bytes of the top's own path.
    let mut length = 0;
    let mut above = node.parent();
    for _ in 0..MAX_DEPTH {
        let id = above.id();
        is_below |= id == top;
        if id == HIERARCHY_ROOT {
            return if is_below { path.wrapping_add(length) } else { ptr::null() };
        }
        if is_below {
            length += 1 + length_of(above.name());
        }
        above = above.parent();
    }
    ptr::null()
}

/// The length of a name.
#[inline(always)]
fn length_of(name: Address) -> usize {
    let mut copy = MaybeUninit::<[u8; NAME_CAP]>::uninit();
    // SAFETY: `copy` has that many bytes.
    unsafe { copy_string::<NAME_CAP>(name, copy.as_mut_ptr().cast()) as usize }
}

/// Keeps the cgroups above a root of the tracked set: what is written to their limit files matters below.
#[inline(always)]
fn remember_ancestors(root: &KernfsNode) {
    let mut id = root.parent_id();
    let mut node = root.parent();
    for _ in 0..MAX_ANCESTORS {
        if id == 0 {
            return;
        }
        // A full map costs what is written there: a loss like that of a cgroup which cannot be tracked.
        if ANCESTORS.insert(id, 0, 0).is_err() {
            count_untracked();
        }
        if id == top() {
            return;
        }
        id = node.parent_id();
        node = node.parent();
    }
}

#[inline(always)]
fn removed(kind: RecordKind, id: u64, tracked: &Tracked) {
    let Some(mut entry) = reserve_in::<CgroupRemoved>(Ring::Lifecycle, kind, tracked) else { return };
    entry.write(CgroupRemoved { header: header(kind, id, 0), actor: actor() });
    entry.submit(0);
}

/// `cgroup_attach_task(destination, path, task, threadgroup)`: the task is in the destination.
#[inline(always)]
pub fn attach(hook: &impl Arguments) {
    let destination = cgroup(hook);
    if !destination.is_v2() {
        return;
    }
    let id = destination.node().id();
    let task = Task::at(hook.arg(2));
    let Some(tracked) = TRACKED.get_ptr(id) else { return };
    if !task.is_leader() {
        return;
    }
    // SAFETY: a live map element.
    let tracked = unsafe { &*tracked };
    let Some(mut entry) = reserve_in::<CgroupAttach>(Ring::Lifecycle, RecordKind::CgroupAttach, tracked)
    else {
        return;
    };
    entry.write(CgroupAttach {
        header: header(RecordKind::CgroupAttach, id, 0),
        process: task.process(),
        actor: actor(),
    });
    entry.submit(0);
}

/// `cgroup_notify_populated(cgroup, path, populated)`: reported for the cgroup and for each ancestor that changed with it,
/// the innermost first.
#[inline(always)]
pub fn populated(hook: &impl Arguments) {
    let cgroup = cgroup(hook);
    if !cgroup.is_v2() {
        return;
    }
    let node = cgroup.node();
    let id = node.id();
    let Some(tracked) = TRACKED.get_ptr_mut(id) else { return };
    let populated = u32::from(hook.arg::<i32>(2) != 0);
    // SAFETY: a live map element.
    if populated == 0 && unsafe { (*tracked).flags } & TRACKED_STARTED != 0 && !has_started(node.parent_id())
    {
        // SAFETY: a live map element; nothing runs in the cgroup that could write to it at the same time.
        unsafe { (*tracked).flags &= !TRACKED_STARTED };
    }
    // SAFETY: a live map element.
    let tracked = unsafe { &*tracked };
    let Some(mut entry) =
        reserve_in::<CgroupPopulated>(Ring::Lifecycle, RecordKind::CgroupPopulated, tracked)
    else {
        return;
    };
    entry.write(CgroupPopulated { header: header(RecordKind::CgroupPopulated, id, 0), populated, pad: 0 });
    entry.submit(0);
}

#[inline(always)]
fn has_started(id: u64) -> bool {
    // SAFETY: a live map element.
    TRACKED.get_ptr(id).is_some_and(|tracked| unsafe { (*tracked).flags } & TRACKED_STARTED != 0)
}

#[inline(always)]
fn cgroup(hook: &impl Arguments) -> Cgroup {
    Cgroup::at(hook.arg(0))
}

/// Whether a cgroup whose parent is not tracked is a configured root of the tracked set; `key` has its name, of that length. One
/// that is named as the kubelet's cgroup of pods is a root, too, if root owns it. User space's scan has the same rules, and says
/// why they are these: `Roots` of `cgroupfs::roots`.
///
/// - Its name begins with one of [`ROOTS`], and root owns it.
/// - Its path begins with one of [`ROOTS`], whoever owns it.
#[inline(always)]
fn is_configured(key: &mut Key<[u8; PATTERN_CAP]>, length: u32, path: Address) -> bool {
    key.prefix_len = 8 * length;
    if ROOTS.get(&*key).is_some() && Task::current().fsuid() == ROOT_UID {
        return true;
    }
    // SAFETY: `data` has `PATTERN_CAP` bytes.
    key.prefix_len = 8 * unsafe { copy_string::<PATTERN_CAP>(path, (&raw mut key.data).cast()) };
    ROOTS.get(&*key).is_some()
}

/// Whether a cgroup lies below [`SUBTREE`].
#[inline(always)]
fn is_in_subtree(root: &KernfsNode) -> bool {
    // SAFETY: a static of this program; volatile, so that the compiler does not take the initial value for the final one.
    let subtree = unsafe { ptr::read_volatile(&raw const SUBTREE) };
    if subtree == HIERARCHY_ROOT {
        return true;
    }
    let mut id = root.parent_id();
    let mut node = root.parent();
    for _ in 0..MAX_DEPTH {
        if id == subtree {
            return true;
        }
        if id == 0 {
            return false;
        }
        id = node.parent_id();
        node = node.parent();
    }
    false
}

/// Whether a name of that length ends with a container's id, or with one and `.scope`. One that was too long to be read is taken for
/// such: the longest names are those of containers.
#[inline(always)]
fn is_container(name: Address, length: usize) -> bool {
    if length >= PATTERN_CAP - 1 {
        return true;
    }
    if length < ID_DIGITS + SCOPE.len() - 2 {
        return length >= ID_DIGITS && is_id(name.wrapping_add(length - ID_DIGITS));
    }
    let suffix = word_at(name.wrapping_add(length - 8)) >> 16;
    let end = length - if suffix == u64::from_le_bytes(*SCOPE) >> 16 { SCOPE.len() - 2 } else { 0 };
    is_id(name.wrapping_add(end - ID_DIGITS))
}

/// Whether a container's id is there.
#[inline(always)]
fn is_id(text: Address) -> bool {
    let mut digits = true;
    // Word by word, and without a branch at each digit, all of whose ways the verifier would go.
    for word in 0..ID_DIGITS / 8 {
        digits &= is_hexadecimal(word_at(text.wrapping_add(8 * word)));
    }
    digits
}

#[inline(always)]
fn is_kubepods(name: &[u8; PATTERN_CAP]) -> bool {
    let mut window = 0_u64;
    let mut before = b'-';
    for &byte in name {
        if byte == 0 {
            break;
        }
        let leaving = (window >> 56) as u8;
        window = window << 8 | u64::from(byte);
        if leaving != 0 {
            before = leaving;
        }
        if window == KUBEPODS && before == b'-' {
            return true;
        }
    }
    false
}
