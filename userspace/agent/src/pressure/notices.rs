//! Notices that a level has reached its limit: its `memory.events.local`, by inotify. Only in cgroup v2.
//!
//! The kernel changes that file when it has to reclaim at `memory.max` or `memory.high`, before it kills; `local`, because what
//! happens below a level does not concern its own limit. A watch gives one notice and is gone: a level whose page cache is at its
//! limit would give a hundred a second for ever. Never reads the file: a notice is a reason to sample usage, which decides.

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use kwitness_core::model::CgroupId;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nix::sys::time::TimeSpec;

/// Watches, one for each level at most.
#[derive(Debug)]
pub(crate) struct LimitNotices {
    inotify: Inotify,
    levels: HashMap<WatchDescriptor, CgroupId>,
}

impl LimitNotices {
    /// No watches.
    pub(super) fn new() -> nix::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        Ok(Self { inotify, levels: HashMap::new() })
    }

    /// Asks for one notice of a level, whose file that is.
    pub(super) fn watch(&mut self, level: CgroupId, file: &Path) -> nix::Result<WatchDescriptor> {
        let watch = self.inotify.add_watch(file, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_ONESHOT)?;
        self.levels.insert(watch, level);
        Ok(watch)
    }

    /// Does without the notice of a level that is gone. The kernel does not always end the watch of a removed cgroup's file.
    pub(super) fn forget(&mut self, level: CgroupId, watch: WatchDescriptor) {
        if self.levels.get(&watch) == Some(&level) {
            self.levels.remove(&watch);
            // It may have ended already.
            let _ = self.inotify.rm_watch(watch);
        }
    }

    /// Waits so long at most; the levels of which there is a notice. If the kernel had no room for some, all that are watched.
    pub(super) fn wait(&mut self, pause: Duration) -> nix::Result<Vec<CgroupId>> {
        let mut poll = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut poll, Some(TimeSpec::from(pause)), None) {
            Ok(0) | Err(Errno::EINTR) => return Ok(Vec::new()),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
        let mut noticed = Vec::new();
        loop {
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => return Ok(noticed),
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error),
            };
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    noticed.extend(self.levels.drain().map(|(_, level)| level));
                }
                // The end of a watch is an event, too.
                noticed.extend(self.levels.remove(&event.wd));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const LEVEL: CgroupId = CgroupId(7);

    #[test]
    fn a_watch_gives_one_notice() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("memory.events.local");
        fs::write(&file, "max 0\n").unwrap();
        let mut notices = LimitNotices::new().unwrap();
        notices.watch(LEVEL, &file).unwrap();
        assert_eq!(notices.wait(Duration::ZERO), Ok(vec![]));
        for _ in 0..2 {
            fs::write(&file, "max 1\n").unwrap();
        }
        assert_eq!(notices.wait(Duration::from_secs(60)), Ok(vec![LEVEL]));
        fs::write(&file, "max 2\n").unwrap();
        assert_eq!(notices.wait(Duration::ZERO), Ok(vec![]));
        notices.watch(LEVEL, &file).unwrap();
        fs::write(&file, "max 3\n").unwrap();
        assert_eq!(notices.wait(Duration::from_secs(60)), Ok(vec![LEVEL]));
    }

    #[test]
    fn a_level_that_is_forgotten_gives_none_and_another_at_its_path_does() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("memory.events.local");
        fs::write(&file, "").unwrap();
        let mut notices = LimitNotices::new().unwrap();
        let watch = notices.watch(LEVEL, &file).unwrap();
        notices.forget(LEVEL, watch);
        fs::write(&file, "max 1\n").unwrap();
        assert_eq!(notices.wait(Duration::ZERO), Ok(vec![]));
        let (other, first) = (CgroupId(8), notices.watch(LEVEL, &file).unwrap());
        assert_eq!(notices.watch(other, &file), Ok(first), "it is the same file");
        notices.forget(LEVEL, first);
        fs::write(&file, "max 2\n").unwrap();
        assert_eq!(notices.wait(Duration::from_secs(60)), Ok(vec![other]));
    }

    #[test]
    fn a_file_that_is_not_there_cannot_be_watched() {
        let mut notices = LimitNotices::new().unwrap();
        assert_eq!(notices.watch(LEVEL, Path::new("/nonexistent/memory.events.local")), Err(Errno::ENOENT));
    }
}
