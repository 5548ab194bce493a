//! `kwitness record`: the daemon's events as a recording that `--file` reads.
//!
//! Owns when a snapshot is taken, when lines are written, and where a recording goes on. The format is the API's. A sample of usage is
//! a state: one that is missing is no loss, and a recording goes on without them.
//!
//! ```text
//!  open the file ─▶ position of its last event ─▶ snapshot, verdicts ─▶ events after that position, samples ─▶ …
//!        ▲                                                                       │ the file is full
//!        └────────────────────────────── begin the next file ◀───────────────────┘
//! ```

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use chrono::Utc;
use kwitness_api::client::{Client, Error, Item, UsageItem, UsageWatch};
use kwitness_api::recording::{At, FORMAT, Header, Line, Options, Writer};
use kwitness_api::{Timestamp, proto};
use kwitness_core::verdicts::quantity;
use tokio::time::{Instant, sleep_until};

use crate::connect::{Outage, connect};
use crate::exit::Code;
use crate::output::note;
use crate::quantities;
use crate::text::Moment;

/// The longest that an event is held back before it is written.
const FLUSH: Duration = Duration::from_secs(1);
/// Each file begins with a snapshot and verdicts, some 5 KiB per container: smaller files would hold little else.
const MAX_SIZE_MIN: u64 = 16 << 20;

#[derive(Debug, clap::Args)]
pub struct Record {
    /// The file to write; if it is a recording of this node, continue it where it ends
    #[arg(long, short = 'o', value_name = "FILE")]
    pub output: PathBuf,
    /// Begin a new file at this size, at least 16MiB
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "100MiB")]
    pub max_size: u64,
    /// Keep this many files: FILE (the newest), FILE.1, FILE.2, …
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000), default_value_t = 5)]
    pub keep: u32,
    /// Compress with zstd, in frames of whole lines
    #[arg(long)]
    pub zstd: bool,
    /// Record what containers use at this interval, from 500ms to 1m, or "off"; not with --no-follow
    #[arg(long, value_name = "INTERVAL", value_parser = sampling, default_value = "10s", conflicts_with = "no_follow")]
    pub usage: Sampling,
    /// Start a new recording with past events: an age ("5m", "1h30m") or a time (RFC 3339)
    #[arg(long, value_name = "WHEN")]
    pub since: Option<Moment>,
    /// Exit after past events have been recorded; without --since, all that the daemon keeps
    #[arg(long)]
    pub no_follow: bool,
}

/// How often usage is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampling {
    /// No samples.
    Off,
    /// At this interval.
    Every(Duration),
}

pub async fn run(socket: Option<OsString>, options: Record) -> anyhow::Result<Code> {
    let no_follow = options.no_follow;
    let since = options.since.map(|since| since.before(Utc::now()));
    let since = since.or(no_follow.then_some(Timestamp::default()));
    let writing = Options { max_size: options.max_size, keep: options.keep, zstd: options.zstd };
    let client = connect(socket).await?;
    let mut recorder = Recorder::open(client, options.output, writing, since.is_none()).await?;
    if let (Sampling::Every(interval), false) = (options.usage, no_follow) {
        recorder.sample(interval).await;
    }
    let done = tokio::select! {
        done = recorder.record(since, no_follow) => done,
        () = ended() => Ok(()),
    };
    // What was received is kept, whatever ends the recording.
    recorder.writer.finish()?;
    done?;
    note(&format!("{} events recorded", recorder.count));
    Ok(Code::Success)
}

struct Recorder {
    client: Client,
    writer: Writer,
    /// None: usage is not recorded.
    samples: Option<UsageWatch>,
    /// The last event in the recording.
    position: Option<proto::Position>,
    count: u64,
}

impl Recorder {
    /// Opens or begins the file and writes a snapshot. A new recording that is to begin now begins with the snapshot.
    async fn open(
        mut client: Client,
        path: PathBuf,
        writing: Options,
        from_now: bool,
    ) -> anyhow::Result<Self> {
        let header = header(&mut client).await?;
        let (writer, position) = Writer::open(&path, writing, &header)?;
        let mut recorder = Self { client, writer, samples: None, position, count: 0 };
        let mut snapshot = recorder.list().await?;
        if from_now && recorder.position.is_none() {
            recorder.position.clone_from(&snapshot.answer.position);
            snapshot.after.clone_from(&recorder.position);
        }
        let verdicts = recorder.verify().await?;
        recorder.begin(snapshot, verdicts)?;
        Ok(recorder)
    }

    /// Begins to record usage. Events are recorded even if that fails.
    async fn sample(&mut self, interval: Duration) {
        let interval_ms = u32::try_from(interval.as_millis()).unwrap_or(u32::MAX);
        let request = proto::WatchUsageRequest { filter: None, interval_ms };
        match self.client.watch_usage(request).await {
            Ok(samples) => self.samples = Some(samples),
            Err(error) => note(&format!("usage is not recorded: {error}")),
        }
    }

    async fn record(&mut self, since: Option<Timestamp>, no_follow: bool) -> anyhow::Result<()> {
        let after = self.position.clone();
        let request = proto::WatchRequest {
            snapshot: after.is_some(),
            since: since.filter(|_| after.is_none()),
            after,
            no_follow,
            ..Default::default()
        };
        let mut watch = self.client.watch(request).await?;
        let mut outage = Outage::default();
        let mut flush: Option<Instant> = None;
        loop {
            let due = flush.unwrap_or_else(|| Instant::now() + FLUSH);
            tokio::select! {
                item = watch.next() => {
                    let Some(item) = item? else { return Ok(()) };
                    outage.note(&item);
                    self.item(item).await?;
                }
                sample = next_sample(&mut self.samples) => match sample {
                    Ok(sample) => self.writer.append(&Line::usage(sample))?,
                    Err(error) => {
                        note(&format!("usage is recorded no longer: {error}"));
                        self.samples = None;
                    }
                },
                () = sleep_until(due), if flush.is_some() => {
                    self.writer.flush()?;
                    flush = None;
                    continue;
                }
            }
            flush.get_or_insert_with(|| Instant::now() + FLUSH);
            if self.writer.is_full() {
                unless_gone(self.next_file().await)?;
            }
        }
    }

    async fn item(&mut self, item: Item) -> anyhow::Result<()> {
        match item {
            Item::Events(events) => self.events(events),
            // Of another epoch, which has its own position.
            Item::Snapshot(answer) => {
                let line = At { time: now(), after: self.position.clone(), answer };
                Ok(self.writer.append(&Line::Snapshot(line))?)
            }
            Item::Disconnected(_) => Ok(()),
            Item::Reconnected => unless_gone(self.verdicts().await),
        }
    }

    /// Begins the next file once all that it begins with is there: of a daemon that is gone in between, it would have no snapshot.
    async fn next_file(&mut self) -> anyhow::Result<()> {
        let header = header(&mut self.client).await?;
        let snapshot = self.list().await?;
        let verdicts = self.verify().await?;
        self.writer.rotate(&header)?;
        self.begin(snapshot, verdicts)
    }

    fn events(&mut self, events: Vec<proto::Event>) -> anyhow::Result<()> {
        for event in events {
            // A loss that only this client had has a number that is not the journal's.
            self.position = event.position.clone().or_else(|| self.position.take());
            self.writer.append(&Line::Event(Box::new(event)))?;
            self.count += 1;
        }
        Ok(())
    }

    /// Writes what a file begins with, after its header.
    fn begin(
        &mut self,
        snapshot: At<proto::Snapshot>,
        verdicts: At<proto::VerifyResponse>,
    ) -> anyhow::Result<()> {
        self.writer.append(&Line::Snapshot(snapshot))?;
        self.writer.append(&Line::Verdicts(verdicts))?;
        Ok(self.writer.flush()?)
    }

    /// All containers.
    async fn list(&mut self) -> anyhow::Result<At<proto::Snapshot>> {
        let proto::ListResponse { position, containers } = self.client.list(proto::Filter::default()).await?;
        let answer = proto::Snapshot { position, containers };
        Ok(At { time: now(), after: self.position.clone(), answer })
    }

    /// All verdicts.
    async fn verify(&mut self) -> anyhow::Result<At<proto::VerifyResponse>> {
        let answer = match self.client.verify(proto::VerifyRequest::default()).await {
            // No container is here.
            Err(Error::NotFound(_)) => proto::VerifyResponse::default(),
            answer => answer?,
        };
        Ok(At { time: now(), after: None, answer })
    }

    async fn verdicts(&mut self) -> anyhow::Result<()> {
        let verdicts = self.verify().await?;
        Ok(self.writer.append(&Line::Verdicts(verdicts))?)
    }
}

/// The next sample; never, if usage is not recorded. Safe to cancel. A daemon that is gone is waited for.
async fn next_sample(samples: &mut Option<UsageWatch>) -> Result<proto::UsageSample, Error> {
    let Some(samples) = samples else { return std::future::pending().await };
    loop {
        if let UsageItem::Sample(sample) = samples.next().await? {
            return Ok(sample);
        }
    }
}

/// That the daemon is gone again ends no recording: the watch goes on once it is back.
fn unless_gone(done: anyhow::Result<()>) -> anyhow::Result<()> {
    match done {
        Err(error) if error.downcast_ref::<Error>().is_some_and(Error::is_transient) => Ok(()),
        done => done,
    }
}

async fn header(client: &mut Client) -> anyhow::Result<Header> {
    let status = client.status().await?;
    Ok(Header {
        format: FORMAT,
        node: status.node_name,
        kernel: status.kernel_release,
        daemon: status.version,
        epoch: status.epoch,
        recorder: env!("CARGO_PKG_VERSION").to_owned(),
        time: Some(now()),
    })
}

fn now() -> Timestamp {
    Moment::Ago(Duration::ZERO).before(Utc::now())
}

/// Ctrl-C, or SIGTERM from a service manager: what was recorded is written first.
async fn ended() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            return;
        }
    }
    _ = tokio::signal::ctrl_c().await;
}

/// "100MiB", "100Mi", "1G".
fn size(text: &str) -> Result<u64, String> {
    let size = quantity::whole(text.strip_suffix('B').unwrap_or(text)).map_err(|error| error.to_string())?;
    if size < MAX_SIZE_MIN { Err("at least 16MiB".to_owned()) } else { Ok(size) }
}

/// "10s", "off".
fn sampling(text: &str) -> Result<Sampling, String> {
    if text == "off" {
        return Ok(Sampling::Off);
    }
    quantities::interval(text).map(Sampling::Every).map_err(|error| format!("{error}, nor \"off\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_sampled_as_often_as_the_daemon_does_or_not() {
        assert_eq!(sampling("off"), Ok(Sampling::Off));
        assert_eq!(sampling("1m"), Ok(Sampling::Every(Duration::from_secs(60))));
        assert!(sampling("100ms").unwrap_err().ends_with("nor \"off\""));
    }

    #[test]
    fn sizes_are_written_as_people_do() {
        assert_eq!(size("100MiB"), Ok(100 << 20));
        assert_eq!(size("16Mi"), Ok(16 << 20));
        assert_eq!(size("1GB"), Ok(1_000_000_000));
        assert!(size("15MiB").is_err() && size("100 MiB").is_err() && size("B").is_err());
    }
}
