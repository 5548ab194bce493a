//! What the name of a set says: which records it has, and everything else that makes the maps or programs of two daemons different.
//!
//! Owns the name. Never looks at a set.

use std::{
    collections::hash_map::DefaultHasher,
    ffi::OsStr,
    hash::{Hash as _, Hasher},
    io,
    os::unix::ffi::OsStrExt as _,
};

use kwitness_abi::{Budget, Counters, ProcessKey, RecordKind, Tracked};
use kwitness_core::model::LimitFile;

use crate::probe::{
    counters,
    object::OBJECT,
    settings::{MAX_ROOTS, Settings},
};

/// Changes whenever what is pinned changes its meaning in another way than sizes show: a field of a record, a flag, a value of a map.
///
/// 3: an element of `TRACKED` says which container it is, or lies in.
const FORMAT: u32 = 3;
/// Hexadecimal digits in the name of a layout, and how many of them are the records'.
const LAYOUT_DIGITS: usize = 16;
pub(super) const RECORD_DIGITS: usize = 8;

/// The name of the layout of these settings: what the records mean and are of, then everything else.
///
/// The hash need not be the same in every release: another name costs a set, never an event that is read wrongly.
pub(super) fn layout(settings: &Settings) -> io::Result<String> {
    let Settings {
        lifecycle_ring,
        tasks_ring,
        forks_ring,
        tracked_capacity,
        top,
        subtree,
        pid_namespace,
        roots,
        exclude,
        syscalls,
        charges,
        is_charged: _,
        log: _,
        lock_file,
        pins: _,
    } = settings;
    let mut hasher = DefaultHasher::new();
    (OBJECT, counters::elements()?, MAX_ROOTS).hash(&mut hasher);
    (lifecycle_ring, tasks_ring, forks_ring, exclude, syscalls, charges).hash(&mut hasher);
    let rest = hasher.finish();
    let mut hasher = DefaultHasher::new();
    hash_records(&mut hasher);
    (tracked_capacity, top, subtree, pid_namespace, roots).hash(&mut hasher);
    // What the daemon of another socket has read is in that one's ledger alone.
    lock_file.hash(&mut hasher);
    // The first half of either.
    let half = |hash: u64| hash >> (4 * RECORD_DIGITS);
    Ok(format!("{:0RECORD_DIGITS$x}{:0RECORD_DIGITS$x}", half(hasher.finish()), half(rest)))
}

/// What makes records, and what is copied from one set's maps to another's, mean something else.
fn hash_records(hasher: &mut impl Hasher) {
    FORMAT.hash(hasher);
    for kind in RecordKind::ALL {
        (kind as u16, kind.name(), kind.record_size()).hash(hasher);
    }
    let values = [size_of::<Tracked>(), size_of::<ProcessKey>(), size_of::<Counters>(), size_of::<Budget>()];
    values.hash(hasher);
    LimitFile::all().for_each(|file| (file.number(), file.to_string()).hash(hasher));
}

/// Whether it may be the name of a [`layout`].
pub(super) fn is_layout(name: &OsStr) -> bool {
    name.len() == LAYOUT_DIGITS && name.as_bytes().iter().all(u8::is_ascii_hexdigit)
}

/// Whether the records of two layouts, by their names, are the same.
pub(super) fn has_same_records(name: &str, other: &str) -> bool {
    name.get(..RECORD_DIGITS) == other.get(..RECORD_DIGITS)
}
