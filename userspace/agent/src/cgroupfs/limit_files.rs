//! The limit files of a cgroup, read and typed; and the thread that reads them for the engine.
//!
//! Each reading is of one cgroup and no other: a directory that has another id by now is said to be gone. Never writes.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kwitness_core::model::{LimitFile, LimitsAnswer, Observation, ReadLimits, Reading, Value};
use tokio::sync::mpsc;

use super::search::{NotFound, Search};
use super::turns::Turns;
use super::{CgroupFs, Directory, gone};
use crate::clock::Clock;

/// No limit file is longer: `io.max` has a line of some hundred bytes a device.
const LONGEST: u64 = 64 << 10;

/// Requests that there is room for at rest.
const SPARE: usize = 64;

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

/// A path as whoever asked has it already, if it is the same: it is kept as long as the cgroup exists.
fn shared(request: &ReadLimits, path: &str) -> Arc<str> {
    request.path.as_ref().filter(|asked| ***asked == *path).map_or_else(|| path.into(), Arc::clone)
}

/// The answer to a request that was made at `asked`.
fn read(search: &mut Search, request: &ReadLimits, asked: Instant) -> LimitsAnswer {
    let began = Clock::read().now();
    let (readings, path) = match search.find(request, asked) {
        Ok((directory, path)) => {
            let readings = match request.limit_file {
                Some(limit_file) => match read_limit_file(&directory, limit_file) {
                    Reading::Gone => None,
                    reading => Some(vec![(limit_file, reading)]),
                },
                None => read_all(&directory),
            };
            // What was read of a cgroup that is gone by now may be half of it.
            (readings.filter(|_| directory.exists()), path.to_str().map(|path| shared(request, path)))
        }
        Err(NotFound::Gone) => (None, None),
        Err(NotFound::Beyond(most)) => {
            let why: Arc<str> = format!("more than {most} cgroups to search").into();
            let limit_files = LimitFile::all().filter(|of| request.limit_file.is_none_or(|only| only == *of));
            let readings = limit_files.map(|limit_file| (limit_file, Reading::Unknown(Arc::clone(&why))));
            (Some(readings.collect()), None)
        }
    };
    LimitsAnswer {
        cgroup: request.cgroup,
        path,
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
/// until it is answered. What has to be looked for comes last, in turns: it lies in a container, which decides how long that takes and
/// how much there is of it.
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
    sought: Turns,
    ended: bool,
}

impl Open {
    fn push(&mut self, request: ReadLimits, asked: Instant) {
        match request.limit_file {
            _ if request.inner || request.path.is_none() => self.sought.push(request, asked),
            Some(_) => self.files.push_back((request, asked)),
            None => self.whole.push_back((request, asked)),
        }
    }

    fn next(&mut self) -> Option<(ReadLimits, Instant)> {
        let next = self.files.pop_front().or_else(|| self.whole.pop_front());
        next.or_else(|| self.sought.pop())
    }

    fn len(&self) -> usize {
        self.files.len() + self.whole.len() + self.sought.len()
    }

    /// Whether nothing is left to be read. If so, what many requests at a time took is given back.
    fn rests(&mut self) -> bool {
        let rests = self.len() == 0;
        if rests {
            self.files.shrink_to(SPARE);
            self.whole.shrink_to(SPARE);
        }
        rests
    }
}

impl LimitReader {
    /// Starts the thread; it ends with the reader. In one container, no more than `most` cgroups are searched.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn start(cgroups: CgroupFs, most: usize, answers: mpsc::Sender<Observation>) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let of_thread = Arc::clone(&queue);
        std::thread::Builder::new().name("limit-reader".to_owned()).spawn(move || {
            // Whoever writes limits in one container does not make the walk of another be made again.
            let (mut of_files, mut of_whole) =
                (Search::new(cgroups.clone(), most), Search::new(cgroups, most));
            while let Some((request, asked)) = of_thread.next() {
                let search = if request.limit_file.is_some() { &mut of_files } else { &mut of_whole };
                let answer = read(search, &request, asked);
                // The engine is gone: there is no receiver.
                if answers.blocking_send(Observation::LimitsRead(answer)).is_err() {
                    return;
                }
                if of_thread.lock().rests() {
                    of_files.forget();
                    of_whole.forget();
                }
            }
        })?;
        Ok(Self { queue })
    }

    /// Asks for a reading that begins after this call. Returns at once.
    pub fn ask(&self, request: ReadLimits) {
        self.queue.lock().push(request, Instant::now());
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
    use crate::cgroupfs::directory::testing::{Nest, opened};
    use crate::cgroupfs::turns::TURN;

    const MOST: usize = 1000;

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
            open.push(request, Instant::now());
        }
        let unknown = ReadLimits { path: None, ..request(5, false, Some(LimitFile::CpuMax)) };
        open.push(unknown, Instant::now());
        assert_eq!(open.len(), 5);
        let order: Vec<_> = std::iter::from_fn(|| open.next()).map(|(request, _)| request.cgroup.0).collect();
        assert_eq!(order, [4, 3, 1, 2, 5]);
        for id in 0..10_000 {
            open.push(self::request(CgroupId(id), None), Instant::now());
        }
        assert!(!open.rests() && open.len() == 10_000);
        while open.next().is_some() {}
        assert!(open.rests() && open.whole.capacity() <= SPARE, "{}", open.whole.capacity());
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
        super::read(&mut Search::new(cgroups.clone(), MOST), request, Instant::now())
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

        let asked = request(id, None);
        let answer = read(&cgroups, &asked);
        let shared = answer.path.as_ref().zip(asked.path.as_ref());
        assert!(shared.is_some_and(|(answered, asked)| Arc::ptr_eq(answered, asked)), "not a second copy");
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

    #[test]
    fn a_cgroup_that_was_not_searched_for_is_unknown_and_not_gone() {
        let (root, cgroups, _) = tree();
        let container = root.path().join("kubepods/podu/c");
        (0..3).for_each(|number| fs::create_dir(container.join(number.to_string())).unwrap());
        let mut search = Search::new(cgroups, 3);
        for limit_file in [Some(LimitFile::MemoryMax), None] {
            let request = ReadLimits {
                cgroup: CgroupId(u64::MAX),
                path: Some("/kubepods/podu/c".into()),
                inner: true,
                limit_file,
            };
            let answer = super::read(&mut search, &request, Instant::now());
            assert!(!answer.gone);
            let reading = answer.readings.iter().find(|(of, _)| *of == LimitFile::MemoryMax);
            let why = Reading::Unknown("more than 3 cgroups to search".into());
            assert_eq!(reading, Some(&(LimitFile::MemoryMax, why)));
        }
    }

    /// Counted in directories that are opened until the other container's one is read.
    #[test]
    fn a_container_with_many_readings_delays_another_by_one_turn() {
        const MANY: usize = 4 * TURN;
        let (root, cgroups, _) = tree();
        let inner = |container: &str, number: usize| {
            let directory = root.path().join(format!("kubepods/podu/{container}/{number}"));
            fs::create_dir_all(&directory).unwrap();
            let path = Some(format!("/kubepods/podu/{container}").into());
            let cgroup = CgroupId(fs::metadata(&directory).unwrap().ino());
            ReadLimits { cgroup, path, inner: true, limit_file: Some(LimitFile::MemoryMax) }
        };
        let mut open = Open::default();
        (0..MANY).for_each(|number| open.push(inner("hostile", number), Instant::now()));
        let other = inner("other", 0);
        open.push(other.clone(), Instant::now());
        let mut search = Search::new(cgroups, 2 * MANY);
        let before = opened();
        let (mut read_first, mut all) = (0, 0);
        let mut work = 0;
        while let Some((request, asked)) = open.next() {
            assert!(!super::read(&mut search, &request, asked).gone);
            if request == other {
                (read_first, work) = (all, opened() - before);
            }
            all += 1;
        }
        assert_eq!((read_first, all), (TURN, MANY + 1));
        // A walk opens each of them, lists it and goes up again; a reading opens the container and its cgroup.
        let bound = (4 * MANY + 4 * TURN + 20) as u64;
        assert!(work <= bound, "{work} directories opened, more than {bound}");
        // One walk for each turn, and no more.
        let walks = (opened() - before) / (MANY as u64);
        assert!(walks <= 4 * (MANY / TURN) as u64 + 4, "{walks}");
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
        let reader = LimitReader::start(cgroups, MOST, answer).unwrap();
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
