//! What user space can watch a cgroup's memory with: it raises the limit once, when it sees that the threshold is crossed.
//!
//! Each watch is a thread of its own, as it would be a process. It is armed before the filler starts.

use std::error::Error;
use std::fmt::{self, Display};
use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Any stall at all within a window, the finest first. The kernel looks ten times in a window. Older ones take none below 500 ms
/// (`WINDOW_MIN_US` of `kernel/sched/psi.c`); later ones do, from those who may create more than the slowest.
const TRIGGERS: [&str; 2] = ["some 1 10000\0", "some 1 500000\0"];

#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// `memory.current`, read once in that time.
    Usage(Duration),
    /// `memory.events`, by inotify.
    Events,
    /// `memory.pressure`, by a trigger.
    Pressure,
}

/// The kernel does not offer it.
#[derive(Debug)]
pub(super) struct Unavailable(String);

impl Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Unavailable {}

#[derive(Debug)]
pub(super) struct Watch {
    /// Its end wakes the thread.
    stop: PipeWriter,
    thread: JoinHandle<Result<bool>>,
}

#[derive(Debug)]
enum Sensor {
    Usage {
        file: File,
        threshold: u64,
        interval: Duration,
    },
    /// With what the file said before.
    Events {
        inotify: Inotify,
        file: PathBuf,
        before: String,
    },
    Pressure(File),
}

impl Watch {
    pub(super) fn start(
        source: Source,
        cgroup: &Path,
        threshold: u64,
        raise: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let sensor = Sensor::arm(source, cgroup, threshold)?;
        let (reader, stop) = io::pipe().context("make a pipe")?;
        let thread = std::thread::spawn(move || {
            let has_seen = sensor.wait(&reader)?;
            if has_seen {
                raise()?;
            }
            Ok(has_seen)
        });
        Ok(Self { stop, thread })
    }

    /// Ends it; whether it raised.
    pub(super) fn end(self) -> Result<bool> {
        drop(self.stop);
        self.thread.join().map_err(|_| anyhow::anyhow!("the watch panicked"))?
    }
}

impl Sensor {
    fn arm(source: Source, cgroup: &Path, threshold: u64) -> Result<Self> {
        let of = |file: &Path, error: io::Error| Unavailable(format!("{}: {error}", file.display()));
        match source {
            Source::Usage(interval) => {
                let file = cgroup.join("memory.current");
                let file = File::open(&file).with_context(|| format!("open {}", file.display()))?;
                Ok(Self::Usage { file, threshold, interval })
            }
            Source::Events => {
                let file = cgroup.join("memory.events");
                let before = read(&file)?;
                let watched = || {
                    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
                    inotify.add_watch(&file, AddWatchFlags::IN_MODIFY)?;
                    Ok::<_, nix::Error>(inotify)
                };
                let inotify = watched().map_err(|error| of(&file, error.into()))?;
                Ok(Self::Events { inotify, file, before })
            }
            Source::Pressure => {
                let file = cgroup.join("memory.pressure");
                let armed = finest(|trigger| {
                    let mut pressure = File::options().read(true).write(true).open(&file)?;
                    pressure.write_all(trigger.as_bytes())?;
                    Ok(pressure)
                });
                Ok(Self::Pressure(armed.map_err(|error| of(&file, error))?))
            }
        }
    }

    /// Until it sees the threshold crossed, which is true, or is stopped.
    fn wait(&self, stop: &PipeReader) -> Result<bool> {
        match self {
            Self::Usage { file, threshold, interval } => {
                // A poller knows nothing of when the filler starts.
                let mut rest = interval.mul_f64(fastrand::f64());
                loop {
                    if wait(stop, None, Some(rest))? == Woken::Stopped {
                        return Ok(false);
                    }
                    if usage(file)? >= *threshold {
                        return Ok(true);
                    }
                    rest = *interval;
                }
            }
            Self::Events { inotify, file, before } => loop {
                if wait(stop, Some((inotify.as_fd(), PollFlags::POLLIN)), None)? == Woken::Stopped {
                    return Ok(false);
                }
                inotify.read_events().context("read inotify's events")?;
                // The kernel may deliver late what belongs to the run before.
                if read(file)? != *before {
                    return Ok(true);
                }
            },
            Self::Pressure(trigger) => {
                let woken = wait(stop, Some((trigger.as_fd(), PollFlags::POLLPRI)), None)?;
                Ok(woken == Woken::Ready)
            }
        }
    }
}

/// The first of [`TRIGGERS`] whose window the kernel takes.
fn finest<T>(arm: impl Fn(&str) -> io::Result<T>) -> io::Result<T> {
    let [finest, coarse] = TRIGGERS;
    match arm(finest) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => arm(coarse),
        armed => armed,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Woken {
    Stopped,
    Ready,
    Rested,
}

fn wait(
    stop: &PipeReader,
    source: Option<(BorrowedFd<'_>, PollFlags)>,
    rest: Option<Duration>,
) -> Result<Woken> {
    let timeout = match rest {
        Some(rest) => PollTimeout::try_from(rest).context("a rest that poll(2) takes")?,
        None => PollTimeout::NONE,
    };
    let mut all = vec![PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    all.extend(source.map(|(descriptor, flags)| PollFd::new(descriptor, flags)));
    poll(&mut all, timeout).context("poll")?;
    let has = |index: usize, flags| {
        let returned = all.get(index).and_then(PollFd::revents);
        returned.is_some_and(|returned| returned.intersects(flags))
    };
    if has(0, PollFlags::POLLIN | PollFlags::POLLHUP) {
        return Ok(Woken::Stopped);
    }
    if has(1, PollFlags::POLLIN | PollFlags::POLLPRI) {
        return Ok(Woken::Ready);
    }
    if has(1, PollFlags::POLLERR | PollFlags::POLLNVAL) {
        bail!("what is watched is gone");
    }
    Ok(Woken::Rested)
}

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("read {}", file.display()))
}

fn usage(file: &File) -> Result<u64> {
    let mut text = [0; 32];
    let length = file.read_at(&mut text, 0).context("read memory.current")?;
    let text = std::str::from_utf8(&text[..length]).context("memory.current is not in UTF-8")?;
    text.trim().parse().with_context(|| format!("memory.current holds `{text}`"))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn cgroup() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [("memory.current", "10\n"), ("memory.events", "high 0\n")] {
            fs::write(directory.path().join(name), text).unwrap();
        }
        directory
    }

    /// Puts a text of the same length into a file, which is never empty.
    fn rewrite(cgroup: &Path, name: &str, text: &str) {
        let file = File::options().write(true).open(cgroup.join(name)).unwrap();
        file.write_all_at(text.as_bytes(), 0).unwrap();
    }

    fn watch(source: Source, cgroup: &Path) -> (Watch, mpsc::Receiver<()>) {
        let (to, raised) = mpsc::channel();
        let watch = Watch::start(source, cgroup, 90, move || Ok(to.send(())?)).unwrap();
        (watch, raised)
    }

    #[test]
    fn a_poller_raises_at_the_threshold() {
        let cgroup = cgroup();
        let (watch, raised) = watch(Source::Usage(Duration::from_millis(1)), cgroup.path());
        rewrite(cgroup.path(), "memory.current", "90\n");
        raised.recv().unwrap();
        assert!(watch.end().unwrap());
    }

    #[test]
    fn inotify_raises_when_the_counters_have_changed() {
        let cgroup = cgroup();
        let (watch, raised) = watch(Source::Events, cgroup.path());
        // Another write of the same: not yet.
        rewrite(cgroup.path(), "memory.events", "high 0\n");
        rewrite(cgroup.path(), "memory.events", "high 1\n");
        raised.recv().unwrap();
        assert!(watch.end().unwrap());
    }

    #[test]
    fn what_is_ended_has_not_raised() {
        let cgroup = cgroup();
        for source in [Source::Usage(Duration::from_secs(3600)), Source::Events] {
            let (watch, raised) = watch(source, cgroup.path());
            assert!(!watch.end().unwrap());
            raised.recv().unwrap_err();
        }
    }

    #[test]
    fn a_kernel_that_takes_no_short_window_gets_a_long_one() {
        assert_eq!(finest(|trigger| Ok(trigger.to_owned())).unwrap(), "some 1 10000\0");
        let invalid = || io::Error::from_raw_os_error(nix::libc::EINVAL);
        let old = |trigger: &str| if trigger.contains("500000") { Ok(500_000) } else { Err(invalid()) };
        assert_eq!(finest(old).unwrap(), 500_000);
        let off = |_: &str| Err::<(), _>(io::Error::from_raw_os_error(nix::libc::EOPNOTSUPP));
        assert_eq!(finest(off).unwrap_err().raw_os_error(), Some(nix::libc::EOPNOTSUPP));
    }

    #[test]
    fn a_kernel_without_psi_is_named() {
        let error = Watch::start(Source::Pressure, cgroup().path(), 90, || Ok(())).unwrap_err();
        let text = error.downcast_ref::<Unavailable>().unwrap().to_string();
        assert!(text.contains("memory.pressure: No such file"), "{text}");
    }
}
