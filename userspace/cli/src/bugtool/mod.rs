//! `kwitness bugtool`: one archive for a bug report.
//!
//! Owns what is in it. Nothing that may be secret is: no environment, no command line, no output of a container; the daemon
//! records none of these. What could not be collected is listed in the archive.

mod redact;
#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::Utc;
use kwitness_api::client::{Client, Item};
use kwitness_api::recording::{At, FORMAT, Header, Line};
use kwitness_api::{Timestamp, proto};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use serde::Serialize;
use serde_json::Value;

use crate::connect::connect;
use crate::exit::Code;
use crate::output::{note, write_new};
use crate::text::Moment;
use redact::{Names, Redactor};

/// What is in the archive, and what is not.
const README: &str = "\
kwitness bugtool

status.json      what `kwitness status -o json` shows: version, hooks, counters, losses, problems
containers.json  what `kwitness ps -a -o json` shows
verdicts.json    what `kwitness verify -A -o json` shows
doctor.json      what `kwitness doctor -o json` shows
events.kwr       a recording: `kwitness events --file events.kwr`
config.toml      the daemon's configuration file
kernel.txt       kernel version, lockdown, security modules, cgroup mounts, BPF sysctls
log.txt          the service's log, its last 86,400 lines, with --logs only
errors.txt       what could not be collected, and why; a file that would be empty is left out

There are no environment variables, no command lines and no output of containers in it.
With --redact, names, images, labels and the API server's address are replaced by hashes that differ from archive
to archive. Names of programs, paths, IDs and UIDs stay; so do the names of the node's units in cgroup paths.
";
/// Facts about the kernel: small files, none of which has secrets.
#[cfg(target_os = "linux")]
const KERNEL: [&str; 8] = [
    "/proc/version",
    "/sys/kernel/security/lockdown",
    "/sys/kernel/security/lsm",
    "/proc/sys/kernel/bpf_stats_enabled",
    "/proc/sys/kernel/unprivileged_bpf_disabled",
    "/proc/sys/net/core/bpf_jit_enable",
    "/sys/fs/cgroup/cgroup.controllers",
    "/etc/os-release",
];

/// Bytes of a file that is collected whole: of a configuration, as many as a daemon reads.
const SMALL_MAX: u64 = 1 << 20;
/// Lines of the log: a day of one that has one a second.
const LOG_LINES: &str = "--lines=86400";

#[derive(Debug, clap::Args)]
pub struct Bugtool {
    /// The archive to write [default: kwitness-bugtool-TIME.tar.zst]
    #[arg(long, short = 'o', value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// How far back events and logs go: an age or a time (RFC 3339)
    #[arg(long, value_name = "WHEN", default_value = "30m")]
    pub since: Moment,
    /// Include the log of the systemd unit kwitness
    #[arg(long)]
    pub logs: bool,
    /// Replace names, images and labels by hashes
    #[arg(long)]
    pub redact: bool,
}

pub async fn run(socket: Option<OsString>, options: Bugtool) -> anyhow::Result<Code> {
    let now = Utc::now();
    let since = options.since.before(now);
    let mut parts = Parts::default();
    match connect(socket.clone()).await {
        Ok(mut client) => daemon(&mut client, since, &mut parts).await,
        Err(error) => parts.missing("status.json, containers.json, verdicts.json, events.kwr", &error),
    }
    node(socket, &mut parts).await;
    if options.logs {
        logs(since, &mut parts);
    }
    if options.redact {
        parts.redact()?;
    }
    let path = options
        .output
        .unwrap_or_else(|| format!("kwitness-bugtool-{}.tar.zst", now.format("%Y%m%dT%H%M%SZ")).into());
    let archive = parts.archive(now.timestamp())?;
    // Names are the owner's only.
    write_new(&path, &archive)?;
    parts.errors.iter().for_each(|error| note(error));
    note(&format!(
        "{} written ({} KiB); look into it before you send it",
        path.display(),
        archive.len() >> 10
    ));
    Ok(Code::Success)
}

/// The files of the archive.
#[derive(Default)]
struct Parts {
    /// JSON documents, one per line.
    values: Vec<(&'static str, Vec<Value>)>,
    texts: Vec<(&'static str, String)>,
    errors: Vec<String>,
}

impl Parts {
    fn missing(&mut self, what: &str, why: &dyn std::fmt::Display) {
        self.errors.push(format!("{what}: {why}"));
    }

    fn value(&mut self, name: &'static str, value: &impl Serialize) {
        match serde_json::to_value(value) {
            Ok(value) => match self.values.iter_mut().find(|(found, _)| *found == name) {
                Some((_, values)) => values.push(value),
                None => self.values.push((name, vec![value])),
            },
            Err(error) => self.missing(name, &error),
        }
    }

    fn line(&mut self, line: &Line) {
        let mut text = Vec::new();
        match line.write(&mut text).and_then(|()| serde_json::from_slice::<Value>(&text)) {
            Ok(value) => self.value("events.kwr", &value),
            Err(error) => self.missing("events.kwr", &error),
        }
    }

    fn redact(&mut self) -> anyhow::Result<()> {
        let mut names = Names::default();
        self.values.iter().flat_map(|(_, values)| values).for_each(|value| names.learn(value));
        // Of this machine, if no daemon says how it is called.
        if let Ok(host) = fs::read_to_string("/proc/sys/kernel/hostname") {
            names.add(host.trim());
        }
        let redactor = Redactor::new(&names)?;
        self.values.iter_mut().flat_map(|(_, values)| values).for_each(|value| redactor.value(value));
        for text in self.texts.iter_mut().map(|(_, text)| text).chain(&mut self.errors) {
            *text = redactor.text(text);
        }
        Ok(())
    }

    fn archive(&self, time: i64) -> anyhow::Result<Vec<u8>> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut append = |name: &str, contents: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(contents.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(u64::try_from(time).unwrap_or_default());
            header.set_cksum();
            builder.append_data(&mut header, format!("kwitness-bugtool/{name}"), contents)
        };
        append("README.txt", README.as_bytes())?;
        for (name, values) in &self.values {
            let lines: String = values.iter().map(|value| format!("{value}\n")).collect();
            append(name, lines.as_bytes())?;
        }
        for (name, text) in &self.texts {
            append(name, text.as_bytes())?;
        }
        append(
            "errors.txt",
            self.errors.iter().map(|error| format!("{error}\n")).collect::<String>().as_bytes(),
        )?;
        Ok(compress_to_vec(&*builder.into_inner()?, CompressionLevel::Fastest))
    }
}

async fn daemon(client: &mut Client, since: Timestamp, parts: &mut Parts) {
    let status = match client.status().await {
        Ok(status) => status,
        Err(error) => return parts.missing("everything of the daemon", &error),
    };
    parts.value("status.json", &status);
    let time = Moment::Ago(Duration::ZERO).before(Utc::now());
    parts.line(&Line::Header(Header {
        format: FORMAT,
        node: status.node_name.clone(),
        kernel: status.kernel_release.clone(),
        daemon: status.version.clone(),
        epoch: status.epoch.clone(),
        recorder: env!("CARGO_PKG_VERSION").to_owned(),
        time: Some(time),
    }));
    match client.list(proto::Filter::default()).await {
        Ok(list) => {
            list.containers.iter().for_each(|container| parts.value("containers.json", container));
            let answer = proto::Snapshot { position: list.position, containers: list.containers };
            parts.line(&Line::Snapshot(At { time, after: None, answer }));
        }
        Err(error) => parts.missing("containers.json", &error),
    }
    match client.verify(proto::VerifyRequest::default()).await {
        Ok(answer) => {
            answer.verdicts.iter().for_each(|verdict| parts.value("verdicts.json", verdict));
            parts.line(&Line::Verdicts(At { time, after: None, answer }));
        }
        Err(error) => parts.missing("verdicts.json", &error),
    }
    if let Err(error) = events(client, since, parts).await {
        parts.missing("events.kwr", &error);
    }
    if let Some(path) = &status.config_file {
        match small(path.as_ref()) {
            Ok(text) => parts.texts.push(("config.toml", text)),
            Err(error) => parts.missing(&format!("config.toml ({path})"), &error),
        }
    }
}

/// The text of a small file. What is in its place instead is neither waited for nor read without a bound: which file a daemon uses is
/// only what it says.
fn small(path: &Path) -> io::Result<String> {
    // Opening a FIFO would wait for its writer.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut text = String::new();
    if File::open(path)?.take(SMALL_MAX + 1).read_to_string(&mut text)? as u64 > SMALL_MAX {
        return Err(io::Error::other(format!("larger than {} KiB", SMALL_MAX >> 10)));
    }
    Ok(text)
}

async fn events(client: &Client, since: Timestamp, parts: &mut Parts) -> anyhow::Result<()> {
    let request = proto::WatchRequest { since: Some(since), no_follow: true, ..Default::default() };
    let mut watch = client.watch(request).await?;
    while let Some(item) = watch.next().await? {
        if let Item::Events(events) = item {
            events.into_iter().for_each(|event| parts.line(&Line::Event(Box::new(event))));
        }
    }
    Ok(())
}

/// What is of this machine: of use only where the daemon runs.
async fn node(socket: Option<OsString>, parts: &mut Parts) {
    #[cfg(node)]
    match crate::node::doctor::report(socket).await {
        Ok(report) => parts.value("doctor.json", &report),
        Err(error) => parts.missing("doctor.json", &error),
    }
    #[cfg(not(node))]
    {
        drop(socket);
        parts.missing("doctor.json", &"this program was built without the node side");
    }
    #[cfg(target_os = "linux")]
    {
        let mut text = String::new();
        for path in KERNEL {
            let contents = small(path.as_ref()).unwrap_or_else(|error| format!("({error})\n"));
            text += &format!("{path}: {}\n", contents.trim_end());
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let of_kernel = |line: &&str| {
            let kind = line.split(' ').nth(2).unwrap_or_default();
            ["cgroup", "cgroup2", "bpf", "tracefs", "securityfs"].contains(&kind)
        };
        text += "mounts:\n";
        mounts.lines().filter(of_kernel).for_each(|line| text += &format!("  {line}\n"));
        parts.texts.push(("kernel.txt", text));
    }
}

fn logs(since: Timestamp, parts: &mut Parts) {
    let since = format!("--since=@{}", since.seconds);
    let journal = std::process::Command::new("journalctl")
        .args(["--unit=kwitness", "--no-pager", "--output=short-iso-precise", LOG_LINES, &since])
        .output();
    match journal {
        Ok(output) if output.status.success() => {
            parts.texts.push(("log.txt", String::from_utf8_lossy(&output.stdout).into_owned()));
        }
        Ok(output) => parts.missing("log.txt", &String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) => parts.missing("log.txt", &format!("cannot run journalctl: {error}")),
    }
}
