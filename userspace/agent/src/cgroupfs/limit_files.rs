//! The limit files of a cgroup, read and typed; and the thread that reads them for the engine.
//!
//! Each reading is of one cgroup and no other: a directory that has another id by now is said to be gone. Never writes.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kwitness_core::model::{LimitFile, LimitsAnswer, Observation, ReadLimits, Reading, Value};
use tokio::sync::mpsc;

use super::search::Search;
use super::{CgroupFs, Directory, gone};
use crate::clock::Clock;

/// No limit file is longer: `io.max` has a line of some hundred bytes a device.
const LONGEST: u64 = 64 << 10;

/// Every limit file there can be, by its name.
static LIMIT_FILES: LazyLock<HashMap<String, LimitFile>> =
    LazyLock::new(|| LimitFile::all().map(|limit_file| (limit_file.to_string(), limit_file)).collect());

/// What a limit file of the cgroup in that directory says.
pub fn read_limit_file(directory: &Directory, limit_file: LimitFile) -> Reading {
    match directory.text_within(&limit_file.to_string(), LONGEST) {
        Ok(text) => match Value::parse(limit_file.format(), &text) {
            Ok(value) => Reading::Is(value),
            Err(error) => Reading::Unknown(error.to_string().into()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound && directory.exists() => Reading::Absent,
        Err(error) if gone(&error) => Reading::Gone,
        Err(error) => Reading::Unknown(error.to_string().into()),
    }
}

/// What a limit file of the cgroup of that path says, from the root of the hierarchy.
pub fn read_limit_file_of(cgroups: &CgroupFs, path: &str, limit_file: LimitFile) -> Reading {
    match cgroups.open(path) {
        Ok(directory) => read_limit_file(&directory, limit_file),
        Err(error) if gone(&error) => Reading::Gone,
        Err(error) => Reading::Unknown(error.to_string().into()),
    }
}

/// All limit files that there are in that directory; none: they cannot be listed.
fn read_all(directory: &Directory) -> Option<Vec<(LimitFile, Reading)>> {
    let entries = directory.entries().ok()?;
    let names = entries.iter().filter_map(|entry| entry.name.to_str().ok());
    let mut limit_files: Vec<LimitFile> = names.filter_map(|name| LIMIT_FILES.get(name).copied()).collect();
    limit_files.sort_unstable();
    let readings =
        limit_files.into_iter().map(|limit_file| (limit_file, read_limit_file(directory, limit_file)));
    // What vanished between the list and the reading was not there.
    Some(readings.filter(|(_, reading)| *reading != Reading::Absent).collect())
}

/// The answer to a request that was made at `asked`.
fn read(search: &mut Search, request: &ReadLimits, asked: Instant) -> LimitsAnswer {
    let began = Clock::read().now();
    let found = search.find(request, asked);
    let readings = found.as_ref().and_then(|(directory, _)| match request.limit_file {
        Some(limit_file) => match read_limit_file(directory, limit_file) {
            Reading::Gone => None,
            reading => Some(vec![(limit_file, reading)]),
        },
        None => read_all(directory),
    });
    // What was read of a cgroup that is gone by now may be half of it.
    let readings = readings.filter(|_| found.as_ref().is_some_and(|(directory, _)| directory.exists()));
    LimitsAnswer {
        cgroup: request.cgroup,
        path: found.and_then(|(_, path)| Some(Arc::from(path.to_str()?))),
        began,
        ended: Clock::read().now(),
        gone: readings.is_none(),
        whole: request.limit_file.is_none(),
        readings: readings.unwrap_or_default(),
    }
}

/// Reads limit files on a thread of its own, so that the engine does not wait for a file.
///
/// Nothing bounds the queue here but whoever asks: the core asks for each file, and for each cgroup as a whole, only once
/// until it is answered. What has to be looked for comes last: it lies in a container, which decides how long that takes, and no
/// other container's limits wait for it longer than for one walk.
#[derive(Debug)]
pub struct LimitReader {
    queue: Arc<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    open: Mutex<Open>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Open {
    /// One file each: its change is to be reported.
    files: VecDeque<(ReadLimits, Instant)>,
    /// Whole cgroups.
    whole: VecDeque<(ReadLimits, Instant)>,
    /// One file or a whole cgroup, which lies where its path does not say.
    sought: VecDeque<(ReadLimits, Instant)>,
    ended: bool,
}

impl Open {
    fn queue(&mut self, request: &ReadLimits) -> &mut VecDeque<(ReadLimits, Instant)> {
        match request.limit_file {
            _ if request.inner || request.path.is_none() => &mut self.sought,
            Some(_) => &mut self.files,
            None => &mut self.whole,
        }
    }

    fn next(&mut self) -> Option<(ReadLimits, Instant)> {
        let next = self.files.pop_front().or_else(|| self.whole.pop_front());
        next.or_else(|| self.sought.pop_front())
    }

    fn len(&self) -> usize {
        self.files.len() + self.whole.len() + self.sought.len()
    }
}

impl LimitReader {
    /// Starts the thread; it ends with the reader.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn start(cgroups: CgroupFs, answers: mpsc::Sender<Observation>) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let of_thread = Arc::clone(&queue);
        std::thread::Builder::new().name("limit-reader".to_owned()).spawn(move || {
            // Whoever writes limits in one container does not make the walk of another be made again.
            let (mut of_files, mut of_whole) = (Search::new(cgroups.clone()), Search::new(cgroups));
            while let Some((request, asked)) = of_thread.next() {
                let search = if request.limit_file.is_some() { &mut of_files } else { &mut of_whole };
                let answer = read(search, &request, asked);
                // The engine is gone: there is no receiver.
                if answers.blocking_send(Observation::LimitsRead(answer)).is_err() {
                    return;
                }
                if of_thread.lock().len() == 0 {
                    of_files.forget();
                    of_whole.forget();
                }
            }
        })?;
        Ok(Self { queue })
    }

    /// Asks for a reading that begins after this call. Returns at once.
    pub fn ask(&self, request: ReadLimits) {
        self.queue.lock().queue(&request).push_back((request, Instant::now()));
        self.queue.changed.notify_one();
    }

    /// How many readings are still to be made.
    pub fn open(&self) -> usize {
        self.queue.lock().len()
    }
}

impl Drop for LimitReader {
    fn drop(&mut self) {
        self.queue.lock().ended = true;
        self.queue.changed.notify_one();
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next request; none: there will be none.
    fn next(&self) -> Option<(ReadLimits, Instant)> {
        let idle = |open: &mut Open| !open.ended && open.len() == 0;
        let mut open = self.changed.wait_while(self.lock(), idle).unwrap_or_else(PoisonError::into_inner);
        if open.ended {
            return None;
        }
        open.next()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    use kwitness_core::model::{Bound, CgroupId};

    use super::*;
    use crate::cgroupfs::directory::testing::Nest;

    #[test]
    fn what_has_to_be_looked_for_keeps_no_other_waiting() {
        let mut open = Open::default();
        let request = |id: u64, inner: bool, limit_file: Option<LimitFile>| ReadLimits {
            cgroup: CgroupId(id),
            path: Some("/kubepods/c".into()),
            inner,
            limit_file,
        };
        for (id, inner, file) in [
            (1, true, Some(LimitFile::MemoryMax)),
            (2, true, None),
            (3, false, None),
            (4, false, Some(LimitFile::MemoryMax)),
        ] {
            let request = request(id, inner, file);
            open.queue(&request).push_back((request, Instant::now()));
        }
        let unknown = ReadLimits { path: None, ..request(5, false, Some(LimitFile::CpuMax)) };
        open.queue(&unknown).push_back((unknown, Instant::now()));
        assert_eq!(open.len(), 5);
        let order: Vec<_> = std::iter::from_fn(|| open.next()).map(|(request, _)| request.cgroup.0).collect();
        assert_eq!(order, [4, 3, 1, 2, 5]);
    }

    fn tree() -> (tempfile::TempDir, CgroupFs, CgroupId) {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("kubepods/podu");
        fs::create_dir_all(directory.join("c/container")).unwrap();
        for (file, text) in [
            ("memory.max", "4096\n"),
            ("cpu.max", "max 100000\n"),
            ("pids.max", "nonsense\n"),
            ("cgroup.procs", "1\n"),
        ] {
            fs::write(directory.join(file), text).unwrap();
        }
        let id = CgroupId(fs::metadata(&directory).unwrap().ino());
        let cgroups = CgroupFs::at(root.path());
        (root, cgroups, id)
    }

    fn read(cgroups: &CgroupFs, request: &ReadLimits) -> LimitsAnswer {
        super::read(&mut Search::new(cgroups.clone()), request, Instant::now())
    }

    fn request(cgroup: CgroupId, limit_file: Option<LimitFile>) -> ReadLimits {
        ReadLimits { cgroup, path: Some("/kubepods/podu".into()), inner: false, limit_file }
    }

    #[test]
    fn files_are_read_and_what_is_not_there_is_absent() {
        let (_root, cgroups, id) = tree();
        let answer = read(&cgroups, &request(id, Some(LimitFile::MemoryMax)));
        let limit = Reading::Is(Value::Bound(Bound::At(4096)));
        assert_eq!(
            (answer.path.as_deref(), answer.gone, answer.whole),
            (Some("/kubepods/podu"), false, false)
        );
        assert_eq!(answer.readings, [(LimitFile::MemoryMax, limit)]);
        assert!(answer.began <= answer.ended);
        let answer = read(&cgroups, &request(id, Some(LimitFile::IoMax)));
        assert_eq!(answer.readings, [(LimitFile::IoMax, Reading::Absent)]);

        let answer = read(&cgroups, &request(id, None));
        let limit_files: Vec<LimitFile> = answer.readings.iter().map(|(limit_file, _)| *limit_file).collect();
        assert_eq!(limit_files, [LimitFile::MemoryMax, LimitFile::CpuMax, LimitFile::PidsMax]);
        assert!(matches!(&answer.readings[2].1, Reading::Unknown(why) if why.contains("nonsense")));
    }

    #[test]
    fn a_cgroup_that_is_another_by_now_is_gone() {
        let (root, cgroups, id) = tree();
        let other = CgroupId(id.0 + 1_000_000);
        for limit_file in [None, Some(LimitFile::MemoryMax)] {
            let answer = read(&cgroups, &request(other, limit_file));
            assert!(answer.gone && answer.readings.is_empty());
        }
        fs::remove_dir_all(root.path().join("kubepods/podu")).unwrap();
        assert!(read(&cgroups, &request(id, None)).gone);
    }

    #[test]
    fn a_cgroup_without_a_path_is_looked_for() {
        let (root, cgroups, _) = tree();
        let inner = root.path().join("kubepods/podu/c/container");
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        let id = CgroupId(fs::metadata(&inner).unwrap().ino());
        for path in [None, Some("/kubepods/podu/c".into())] {
            let request =
                ReadLimits { cgroup: id, path, inner: true, limit_file: Some(LimitFile::MemoryMax) };
            let answer = read(&cgroups, &request);
            assert_eq!(answer.path.as_deref(), Some("/kubepods/podu/c/container"));
            assert_eq!(
                answer.readings,
                [(LimitFile::MemoryMax, Reading::Is(Value::Bound(Bound::Unlimited)))]
            );
        }
    }

    /// Of a cgroup that no path of the kernel's reaches, too, with its path and without.
    #[test]
    fn the_limits_of_a_deep_cgroup_are_read() {
        let (root, cgroups, _) = tree();
        let top = root.path().join("kubepods/podu/c");
        let nest = Nest::make(&top, &"x".repeat(250), 18);
        nest.write("memory.max", "8192\n");
        let id = nest.innermost().id().unwrap();
        let whole = format!("/kubepods/podu/c{}", nest.path());
        for (path, inner) in [(Some(&*whole), false), (Some("/kubepods/podu/c"), true), (None, false)] {
            let path = path.map(Arc::from);
            let answer = read(&cgroups, &ReadLimits { cgroup: id, path, inner, limit_file: None });
            assert_eq!(answer.path.as_deref(), Some(&*whole));
            assert_eq!(answer.readings, [(LimitFile::MemoryMax, Reading::Is(Value::Bound(Bound::At(8192))))]);
        }
    }

    #[test]
    fn a_file_that_does_not_end_is_not_read_to_its_end() {
        let (root, ..) = tree();
        let path = root.path().join("io.max");
        fs::write(&path, vec![b'x'; 70_000]).unwrap();
        let reading = read_limit_file(&Directory::open(root.path()).unwrap(), LimitFile::IoMax);
        assert!(matches!(&reading, Reading::Unknown(why) if why.contains("64 KiB")), "{reading}");
    }

    #[tokio::test]
    async fn the_thread_answers_files_before_whole_cgroups_and_ends() {
        let (_root, cgroups, id) = tree();
        let (answer, mut answers) = mpsc::channel(1);
        let reader = LimitReader::start(cgroups, answer).unwrap();
        reader.ask(request(id, None));
        reader.ask(request(id, Some(LimitFile::MemoryMax)));
        let mut whole = 0;
        for _ in 0..2 {
            let Some(Observation::LimitsRead(answer)) = answers.recv().await else { panic!() };
            whole += usize::from(answer.whole);
        }
        assert_eq!((whole, reader.open()), (1, 0));
        drop(reader);
        assert_eq!(answers.recv().await, None);
    }
}
