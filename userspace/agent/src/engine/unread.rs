//! Pinned programs that no daemon reads. Another daemon may end at any time, so that they are looked for again and again; those that were
//! found, at each look.
//!
//! The search is a thread's: others pin things there, too. Never changes anything.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use kwitness_core::model::Problem;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::probe::pins::{is_unread, unread};

/// Between two searches.
const PAUSE: Duration = Duration::from_secs(60);

type Search = Arc<dyn Fn() -> Vec<PathBuf> + Send + Sync>;

pub(crate) struct UnreadPins {
    search: Search,
    is_unread: fn(&Path) -> bool,
    searching: Option<JoinHandle<Vec<PathBuf>>>,
    /// No search begins before.
    earliest: Instant,
    /// Where they are pinned.
    found: Vec<PathBuf>,
}

impl UnreadPins {
    /// Beside those of a daemon that pins in that directory. Looks at once.
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self::by(move || unread(&directory), is_unread)
    }

    pub(super) fn by(
        search: impl Fn() -> Vec<PathBuf> + Send + Sync + 'static,
        is_unread: fn(&Path) -> bool,
    ) -> Self {
        let found = search();
        Self { search: Arc::new(search), is_unread, searching: None, earliest: Instant::now() + PAUSE, found }
    }

    /// Looks at those that were found, and for others if that is due.
    pub(super) fn look(&mut self) {
        // Reads a BPF file system, which is in memory.
        self.found.retain(|directory| (self.is_unread)(directory));
        if let Some(searched) = self.searching.as_mut().and_then(|searching| searching.now_or_never()) {
            self.searching = None;
            self.earliest = Instant::now() + PAUSE;
            // One that panicked has found nothing new.
            let others = searched.unwrap_or_default().into_iter().filter(|of| !self.found.contains(of));
            let others: Vec<_> = others.collect();
            self.found.extend(others);
        }
        if self.searching.is_none() && Instant::now() >= self.earliest {
            let search = Arc::clone(&self.search);
            self.searching = Some(tokio::task::spawn_blocking(move || search()));
        }
    }

    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        let problem =
            |directory: &PathBuf| Problem::UnreadPrograms { directory: directory.to_string_lossy().into() };
        self.found.iter().map(problem)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[tokio::test]
    async fn what_another_daemon_leaves_later_is_found_and_what_is_removed_is_not_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("first"), "").unwrap();
        let there = Arc::new(Mutex::new(vec![path("first")]));
        let found = there.clone();
        let mut pins = UnreadPins::by(move || found.lock().unwrap().clone(), Path::exists);
        let problems = |pins: &UnreadPins| pins.problems().count();
        assert_eq!(problems(&pins), 1);
        std::fs::write(path("second"), "").unwrap();
        there.lock().unwrap().push(path("second"));
        pins.look();
        assert!(pins.searching.is_none() && problems(&pins) == 1, "not before its time");
        pins.earliest = Instant::now();
        pins.look();
        while pins.searching.is_some() {
            tokio::task::yield_now().await;
            pins.look();
        }
        assert_eq!(problems(&pins), 2);
        std::fs::remove_file(path("first")).unwrap();
        pins.look();
        assert_eq!(problems(&pins), 1);
    }
}
