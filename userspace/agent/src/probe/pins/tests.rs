//! Sets without a BPF file system: directories with files in place of pins.

use std::num::NonZeroU32;
use std::os::unix::fs::PermissionsExt as _;

use super::layout::RECORD_DIGITS;
use super::*;
use crate::probe::object::OBJECT;
use kwitness_service::private::Foreign;

fn set(directory: &Path, name: &str) -> PathBuf {
    let set = directory.join(name);
    DirBuilder::new().mode(MODE).create(&set).unwrap();
    for part in PARTS.into_iter().chain([COMPLETE]) {
        fs::create_dir(set.join(part)).unwrap();
    }
    MAPS.iter().for_each(|map| fs::write(set.join("maps").join(map), "").unwrap());
    set
}

#[test]
fn what_makes_maps_different_makes_another_layout() {
    let settings = Settings::default();
    let name = layout(&settings).unwrap();
    assert_eq!(layout(&settings).unwrap(), name);
    let size = NonZeroU32::new(1 << 16).unwrap();
    for other in [
        Settings { tasks_ring: size, ..settings.clone() },
        Settings { roots: vec!["docker-".parse().unwrap()], ..settings.clone() },
        Settings { top: 7, ..settings.clone() },
        Settings { subtree: 7, ..settings.clone() },
        Settings { pid_namespace: Some(7), ..settings.clone() },
        Settings { exclude: vec!["raw_tp".parse().unwrap()], ..settings.clone() },
        Settings { lock_file: Some("/y".into()), ..settings.clone() },
    ] {
        assert_ne!(layout(&other).unwrap(), name, "{other:?}");
    }
    let larger = Settings { tasks_ring: size, ..settings.clone() };
    assert_eq!(layout(&larger).unwrap()[..RECORD_DIGITS], name[..RECORD_DIGITS], "its records are the same");
    for other in [
        Settings { lock_file: Some("/y".into()), ..settings.clone() },
        Settings { roots: vec!["docker-".parse().unwrap()], ..settings.clone() },
    ] {
        assert_ne!(layout(&other).unwrap()[..RECORD_DIGITS], name[..RECORD_DIGITS], "{other:?}");
    }
    let elsewhere = Settings { pins: Some("/x".into()), ..settings };
    assert_eq!(layout(&elsewhere).unwrap(), name);
}

#[test]
fn a_set_is_adopted_only_if_it_is_whole_and_ours_alone() {
    let directory = tempfile::tempdir().unwrap();
    let set = set(directory.path(), "0123456789abcdef");
    assert_eq!(flaw(&set, &MAPS).unwrap(), None);
    fs::set_permissions(&set, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(matches!(flaw(&set, &MAPS).unwrap(), Some(Flaw::Foreign(Foreign { mode: 0o755, .. }))));
    fs::set_permissions(&set, fs::Permissions::from_mode(MODE)).unwrap();
    fs::remove_file(set.join("maps/TASKS")).unwrap();
    assert_eq!(flaw(&set, &MAPS).unwrap(), Some(Flaw::MissingMap("TASKS")));
    fs::remove_dir(set.join(COMPLETE)).unwrap();
    assert_eq!(flaw(&set, &MAPS).unwrap(), Some(Flaw::HalfMade));
    remove(&set).unwrap();
    assert!(sets(directory.path()).unwrap().is_empty());
}

#[test]
fn every_map_that_programs_share_is_pinned() {
    let object = aya_obj::Object::parse(OBJECT).unwrap();
    assert!(READ_ON.iter().all(|map| MAPS.contains(map)));
    let is_of_one_load = |name: &&str| name.starts_with('.') || *name == "AYA_LOGS";
    let shared = object.maps.keys().map(String::as_str).filter(|name| !is_of_one_load(name));
    let mut shared: Vec<_> = shared.collect();
    shared.sort_unstable();
    assert_eq!(shared, MAPS);
}

#[test]
fn what_is_no_set_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    set(directory.path(), "0123456789abcdef");
    assert_eq!(sets(directory.path()).unwrap().len(), 1);
    let other = directory.path().join("cilium");
    fs::create_dir(&other).unwrap();
    let refused = sets(directory.path()).unwrap_err();
    assert!(matches!(&refused, Unpinned::NotOurs { path } if *path == other), "{refused}");
}

#[test]
fn pins_need_a_bpf_file_system() {
    let directory = tempfile::tempdir().unwrap();
    let refused = Pins::open(&directory.path().join("kwitness")).unwrap_err();
    assert!(matches!(refused, Unpinned::NoBpffs { .. }), "{refused}");
}

/// Takes a set in a directory that is in no BPF file system.
fn take(directory: &Path, layout: &str) -> Set {
    let file = File::open(directory).unwrap();
    let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).unwrap();
    Pins { directory: directory.to_owned(), lock }.take(layout).unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    sets(directory).unwrap().iter().map(|set| name(set)).collect()
}

#[test]
fn a_set_of_the_same_records_is_read_on_until_the_new_one_has_taken_over() {
    let directory = tempfile::tempdir().unwrap();
    let (other, old, new) = ("1111111100000000", "2222222200000000", "2222222200000001");
    set(directory.path(), other);
    set(directory.path(), old);
    let mut made = take(directory.path(), new);
    assert_eq!(*made.origin(), Origin::Made { replaced: vec![(other.to_owned(), Flaw::OtherRecords)] });
    assert!(made.take_old().is_some());
    // A crash leaves this; a daemon that ends by itself removes it.
    assert_eq!(names(directory.path()), [old, new]);
    drop(made);
    assert_eq!(names(directory.path()), [old], "it is there for the next daemon");

    let mut made = take(directory.path(), new);
    let read = made.take_old().unwrap();
    made.complete().unwrap();
    drop(made);
    // A daemon that was killed right then: what has taken over is adopted, and the other is done with.
    MAPS.iter().for_each(|map| fs::write(directory.path().join(new).join("maps").join(map), "").unwrap());
    let mut adopted = take(directory.path(), new);
    assert_eq!(*adopted.origin(), Origin::Adopted);
    assert!(adopted.take_old().is_none());
    assert_eq!(names(directory.path()), [new]);
    assert!(read.remove().is_err(), "it is gone");
}

#[test]
fn of_two_old_sets_none_is_read() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["2222222200000000", "2222222200000001"] {
        set(directory.path(), name);
    }
    let mut made = take(directory.path(), "2222222200000002");
    assert!(made.take_old().is_none());
    assert_eq!(names(directory.path()), ["2222222200000002"]);
}

#[test]
fn what_is_attached_and_read_by_no_daemon_is_found_wherever_it_is() {
    let root = tempfile::tempdir().unwrap();
    let directory = |name: &str| {
        let directory = root.path().join(name);
        DirBuilder::new().mode(MODE).create(&directory).unwrap();
        directory
    };
    let (usual, other, others) = (directory("kwitness"), directory("other"), directory("cilium"));
    let attached = |directory: &Path, name: &str, program: &str| {
        let set = set(directory, name);
        fs::write(set.join("links").join(program), "").unwrap();
        set
    };
    attached(&usual, "0123456789abcdef", "task_exit");
    let set = attached(&other, "0123456789abcdef", "task_exec");
    attached(&others, "0123456789abcdef", "another's");
    fs::create_dir(others.join("globals")).unwrap();
    let unread = || unread::unread_below(root.path());
    assert_eq!(unread(), [usual.clone(), other.clone()]);
    // Something beside the set keeps a daemon from using it, and nothing from removing it.
    fs::create_dir(other.join("foreign")).unwrap();
    let lock = Flock::lock(File::open(&usual).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
    assert_eq!(unread(), std::slice::from_ref(&other), "a daemon uses the others");
    // What another user might have made says nothing.
    fs::set_permissions(&set, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(unread(), [] as [PathBuf; 0]);
    fs::set_permissions(&set, fs::Permissions::from_mode(MODE)).unwrap();
    let pins = Pins {
        directory: other.clone(),
        lock: Flock::lock(File::open(&other).unwrap(), FlockArg::LockExclusiveNonblock).unwrap(),
    };
    assert_eq!(pins.uninstall().unwrap(), ["0123456789abcdef"]);
    assert!(unread().is_empty() && other.join("foreign").exists());
    drop(lock);
    assert_eq!(unread(), [usual]);
}
