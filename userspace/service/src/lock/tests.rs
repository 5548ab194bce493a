//! Locks of one process' open files stand for those of several processes: neither kind knows which process it belongs to.

use super::*;

fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lock");
    (directory, path)
}

fn standby(path: &Path) -> Standby {
    match InstanceLock::acquire_or_stand_by(path).unwrap() {
        Role::Standby(standby) => standby,
        Role::Instance(lock) => panic!("{lock:?}: there is no other instance"),
    }
}

fn instance(path: &Path) -> InstanceLock {
    match InstanceLock::acquire_or_stand_by(path).unwrap() {
        Role::Instance(lock) => lock,
        Role::Standby(standby) => panic!("{standby:?}: there is another instance"),
    }
}

#[test]
fn the_second_learns_who_the_first_is() {
    let (_directory, path) = place();
    let first = InstanceLock::acquire(&path).unwrap();
    let refusal = InstanceLock::acquire(&path).unwrap_err();
    assert!(
        matches!(&refusal, LockError::AlreadyRunning { holder: Some(pid), .. } if *pid == std::process::id()),
        "{refusal:?}"
    );
    drop(first);
    InstanceLock::acquire(&path).unwrap();
}

#[test]
fn no_other_user_can_take_it_and_no_link_is_followed() {
    let (directory, path) = place();
    let precious = directory.path().join("precious");
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    let _held = InstanceLock::acquire(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
    fs::write(&precious, "precious").unwrap();
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&precious, &link).unwrap();
    InstanceLock::acquire(&link).unwrap_err();
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
}

#[test]
fn a_fifo_does_not_make_the_second_wait() {
    let (_directory, path) = place();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _first = InstanceLock::acquire(&path).unwrap();
    let refusal = InstanceLock::acquire(&path).unwrap_err();
    assert!(matches!(&refusal, LockError::AlreadyRunning { holder: None, .. }), "{refusal:?}");
}

#[test]
fn a_missing_directory_is_named() {
    let error = InstanceLock::acquire(Path::new("/nonexistent/run/lock")).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/run/lock"), "{error}");
}

#[test]
fn one_waits_and_a_third_is_refused() {
    let (_directory, path) = place();
    let first = instance(&path);
    let second = standby(&path);
    assert_eq!(second.holder(), Some(std::process::id()));
    let refusal = InstanceLock::acquire_or_stand_by(&path).unwrap_err();
    assert!(matches!(&refusal, LockError::AlreadyWaiting { holder: Some(_), .. }), "{refusal:?}");
    InstanceLock::acquire(&path).unwrap_err();
    assert!(first.hand_over().unwrap().is_none(), "there is a standby");
    second.waiter().unwrap()().unwrap();
    let second = second.take_over().unwrap().expect("the file is still there");
    // Its place is free.
    let third = standby(&path);
    assert!(second.hand_over().unwrap().is_none());
    assert!(third.give_up().unwrap().is_some());
}

#[test]
fn a_crash_wakes_the_standby() {
    let (_directory, path) = place();
    let first = instance(&path);
    let second = standby(&path);
    let waiting = std::thread::spawn(second.waiter().unwrap());
    drop(first);
    waiting.join().unwrap().unwrap();
    assert!(second.take_over().unwrap().is_some());
}

#[test]
fn without_a_standby_the_lock_comes_back_and_its_file_can_go() {
    let (_directory, path) = place();
    let lock = instance(&path).hand_over().unwrap().expect("there is no standby");
    InstanceLock::acquire(&path).unwrap_err();
    lock.remove().unwrap();
    assert!(!path.exists());
}

/// Both are signalled to stop: whichever order their steps have, exactly one gets the lock, and cleans up.
#[test]
fn of_an_instance_and_its_standby_one_cleans_up() {
    // The standby gives up before the instance ends.
    let (_directory, path) = place();
    let (first, second) = (instance(&path), standby(&path));
    assert!(second.give_up().unwrap().is_none(), "the other instance has the lock");
    assert!(first.hand_over().unwrap().is_some());

    // The instance has ended for its standby's sake, and that gives up: with its waiter still waiting, and with one that has the lock.
    for is_awaited in [false, true] {
        let (_directory, path) = place();
        let (first, second) = (instance(&path), standby(&path));
        let waiter = second.waiter().unwrap();
        assert!(first.hand_over().unwrap().is_none());
        if is_awaited {
            waiter().unwrap();
        }
        assert!(second.give_up().unwrap().is_some());
    }

    // The standby has left its place after the instance saw it there, and has not tried the lock yet.
    let (_directory, path) = place();
    let (first, second) = (instance(&path), standby(&path));
    first.file.unlock().unwrap();
    let (_, second) = second.leave().unwrap();
    let first = first.regain().unwrap();
    assert!(first.is_some() && InstanceLock::of_free(&path, second).unwrap().is_none());
}

#[test]
fn the_lock_of_a_removed_file_is_worth_nothing() {
    let (_directory, path) = place();
    let first = instance(&path);
    let second = standby(&path);
    first.remove().unwrap();
    // One that starts now has another file.
    let third = instance(&path);
    second.waiter().unwrap()().unwrap();
    assert!(second.take_over().unwrap().is_none());
    let fourth = standby(&path);
    third.remove().unwrap();
    assert!(fourth.give_up().unwrap().is_none(), "there is nothing to clean up");
}
