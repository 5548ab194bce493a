//! What is made of a daemon's events: recordings, timelines and archives for bug reports, of a live daemon.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};

use kwitness_agent::clock::Clock;
use kwitness_api::Timestamp;
use kwitness_api::proto::{ContainerState, Event, State, UsageSample};
use kwitness_tests::events::short;
use kwitness_tests::prelude::*;
use kwitness_tests::process::Killed;
use serde_json::Value;

use crate::command::{Done, a_short_life, client, kwitness, run};
use crate::output::json_lines;

const LIMIT: Duration = Duration::from_secs(60);
/// In no other name of the node's.
const SECRET: &str = "an-unusual-node-name";
/// In the environment and in the command line of a container's process.
const PASSWORD: &str = "correct-horse-battery-staple";

/// What a recording answers, without a daemon.
async fn of_file(ctx: &TestContext, file: &Path, line: &str) -> Result<Done> {
    let mut command = kwitness(ctx, line.split_whitespace());
    command.arg("--file").arg(file);
    run(command).await
}

/// A recorder that is ended as by a crash when it is dropped.
struct Recorder {
    _process: Killed,
}

impl Recorder {
    /// Starts one, and waits until what happens from then on is recorded.
    async fn start(ctx: &TestContext, agent: &Agent, file: &Path) -> Result<Self> {
        Self::start_with(ctx, agent, file, &[]).await
    }

    /// The same, with more arguments.
    async fn start_with(ctx: &TestContext, agent: &Agent, file: &Path, arguments: &[&str]) -> Result<Self> {
        let mut command = kwitness(ctx, ["record", "-o"]);
        command.arg(file).args(arguments).arg("--socket").arg(agent.socket()).stderr(Stdio::null());
        let recorder = Self { _process: Killed(command.spawn().context("start the recorder")?) };
        // The snapshot comes after the place from which on it records.
        recorder.has_line(file, "snapshot").await?;
        Ok(recorder)
    }

    /// Waits until a line of that type is in the file.
    async fn has_line(&self, file: &Path, kind: &str) -> Result<()> {
        let line = format!("\"type\":\"{kind}\"");
        let is_there = async || {
            let text = fs::read_to_string(file).unwrap_or_default();
            Ok(text.contains(&line).then_some(()))
        };
        wait_for(&format!("the line {line} in the recording"), LIMIT, is_there).await
    }

    /// Waits until a container's end is in the file.
    async fn has_seen(&self, ctx: &TestContext, file: &Path, id: &str) -> Result<()> {
        wait_for("the container's end in the recording", LIMIT, async || {
            let done = of_file(ctx, file, "events -o json").await?;
            Ok(json_lines::<Event>(&done)?.iter().any(|event| is_end(event, id)).then_some(()))
        })
        .await
    }
}

fn is_end(event: &Event, id: &str) -> bool {
    kind(event) == "deleted" && is_about(event, id)
}

fn is_about(event: &Event, id: &str) -> bool {
    event.container.as_ref().is_some_and(|container| container.id == id)
}

/// What it reports of the past, a recording has, whole, in plain text and compressed.
pub(crate) async fn a_recording_has_what_the_daemon_reported(ctx: &TestContext) -> Result<()> {
    let kubepods = Kubepods::make(&ctx.environment)?;
    let directory = tempfile::tempdir().context("make a directory")?;
    ctx.with_agent(&[], async |agent| {
        let (watcher, ..) = a_short_life(agent, &kubepods).await?;
        let reported: Vec<_> = watcher.seen().events().cloned().collect();
        for flag in ["", "--zstd"] {
            let file = directory.path().join(format!("node{flag}.kwr"));
            let mut record = kwitness(ctx, ["record", "--no-follow", "-o"]);
            record.arg(&file).args(Some(flag).filter(|flag| !flag.is_empty()));
            record.arg("--socket").arg(agent.socket());
            run(record).await?.check(0)?;
            let recorded: Vec<Event> = json_lines(&of_file(ctx, &file, "events -o json").await?)?;
            ensure!(recorded == reported, "{flag}: recorded {recorded:#?}, reported {reported:#?}");
        }
        let other = directory.path().join("other");
        fs::write(&other, "no recording\n").context("write")?;
        ensure!(of_file(ctx, &other, "events").await?.code == Some(1), "it is no recording");
        Ok(())
    })
    .await
}

/// A recorder that is killed goes on where its file ends: what happened meanwhile comes from the daemon, and each event is there once.
pub(crate) async fn a_recording_goes_on_after_a_crash(ctx: &TestContext) -> Result<()> {
    let kubepods = Kubepods::make(&ctx.environment)?;
    let directory = tempfile::tempdir().context("make a directory")?;
    let file = directory.path().join("node.kwr");
    ctx.with_agent(&[], async |agent| {
        let mut watcher = agent.watch(from_now()).await?;
        let recorder = Recorder::start(ctx, agent, &file).await?;
        let (_, first, _) = a_short_life(agent, &kubepods).await?;
        recorder.has_seen(ctx, &file, &first).await?;
        drop(recorder);
        let (_, second, _) = a_short_life(agent, &kubepods).await?;
        let recorder = Recorder::start(ctx, agent, &file).await?;
        let (_, third, _) = a_short_life(agent, &kubepods).await?;
        recorder.has_seen(ctx, &file, &third).await?;
        drop(recorder);
        let recorded: Vec<Event> = json_lines(&of_file(ctx, &file, "events -o json").await?)?;
        let seen = watcher.wait_until("the last end", |seen| seen.has(&third, "deleted")).await?;
        for id in [first, second, third] {
            let own: Vec<_> = recorded.iter().filter(|event| is_about(event, &id)).cloned().collect();
            let reported: Vec<_> = seen.of(&id).cloned().collect();
            ensure!(own == reported, "recorded {own:#?}, reported {reported:#?}");
        }
        Ok(())
    })
    .await
}

/// A recording shows the node as of any time in it.
pub(crate) async fn a_recording_as_of_a_time(ctx: &TestContext) -> Result<()> {
    let kubepods = Kubepods::make(&ctx.environment)?;
    let directory = tempfile::tempdir().context("make a directory")?;
    let file = directory.path().join("node.kwr");
    ctx.with_agent(&[], async |agent| {
        let mut watcher = agent.watch(from_now()).await?;
        let recorder = Recorder::start(ctx, agent, &file).await?;
        let container = kubepods.run()?;
        let id = container.id().to_owned();
        watcher.wait_until("the start", |seen| seen.has(&id, "started")).await?;
        container.end()?;
        let seen = watcher.wait_until("the end", |seen| seen.has(&id, "deleted")).await?;
        recorder.has_seen(ctx, &file, &id).await?;
        drop(recorder);
        let while_it_ran = time_between(&seen, &id, "started", "stopped")?;
        let line = format!("ps -a -o json --at {while_it_ran}");
        let then: Vec<ContainerState> = json_lines(&of_file(ctx, &file, &line).await?)?;
        ensure!(then.len() == 1 && then[0].state() == State::Running, "as of {while_it_ran}: {then:#?}");
        let line = format!("events -o json --at {while_it_ran}");
        let events: Vec<Event> = json_lines(&of_file(ctx, &file, &line).await?)?;
        let is_there =
            |wanted: &str| events.iter().any(|event| is_about(event, &id) && kind(event) == wanted);
        ensure!(is_there("started") && !is_there("stopped"), "as of {while_it_ran}: {events:#?}");
        let now: Vec<ContainerState> = json_lines(&of_file(ctx, &file, "ps -a -o json").await?)?;
        ensure!(now.iter().all(|state| state.state() != State::Running), "at the end: {now:#?}");
        for (at, says) in
            [("2999-01-01", "the recording ends at"), ("2001-01-01", "no snapshot before that time")]
        {
            let outside = of_file(ctx, &file, &format!("ps -a --at {at}T00:00:00Z")).await?;
            outside.check(0)?.check_says(&[says])?;
        }
        Ok(())
    })
    .await
}

/// A recording has samples of usage, across a crash of the daemon, and one without them still has the containers.
pub(crate) async fn a_recording_has_samples_of_usage(ctx: &TestContext) -> Result<()> {
    let kubepods = Kubepods::make(&ctx.environment)?;
    let directory = tempfile::tempdir().context("make a directory")?;
    let file = directory.path().join("node.kwr");
    let container = kubepods.run()?;
    let mut agent = Agent::start(&ctx.environment, &[]).await?;
    let samples = async |line: &str| {
        let done = of_file(ctx, &file, line).await?;
        Ok::<_, anyhow::Error>((json_lines::<UsageSample>(&done)?, done))
    };
    let has_container = |sample: &UsageSample| {
        let ids = sample.containers.iter().filter_map(|usage| usage.container.as_ref());
        ids.map(|container| container.id.as_str()).eq([container.id()])
    };

    let recorder = Recorder::start_with(ctx, &agent, &file, &["--usage", "500ms"]).await?;
    recorder.has_line(&file, "usage").await?;
    agent.kill()?;
    let killed = Clock::read().now().0;
    agent.start_again().await?;
    wait_for("a sample of the next daemon", LIMIT, async || {
        let now = samples("top -o json").await?.0;
        Ok((now[0].kernel_time > killed && has_container(&now[0])).then_some(()))
    })
    .await?;
    let table = of_file(ctx, &file, "top").await?;
    table.check(0)?.check_says(&["sampled at"])?;
    ensure!(table.stdout.contains(short(container.id())), "{table:?}");
    drop(recorder);

    fs::remove_file(&file).context("remove the recording")?;
    client(ctx, agent.socket(), &format!("record --no-follow -o {}", file.display())).await?.check(0)?;
    let (without, done) = samples("top -o json").await?;
    done.check_says(&["no samples of usage"])?;
    ensure!(without[0].time.is_none() && has_container(&without[0]), "{without:#?}");
    container.end()?;
    agent.stop()
}

/// In the middle between two events of a container, as RFC 3339.
fn time_between(seen: &Seen, id: &str, first: &str, second: &str) -> Result<String> {
    let nanos = |wanted: &str| {
        let event = seen.of(id).find(|event| kind(event) == wanted);
        event
            .and_then(|event| event.time)
            .map(Timestamp::to_unix_nanos)
            .with_context(|| format!("no {wanted}"))
    };
    let middle = Timestamp::from_unix_nanos(nanos(first)?.midpoint(nanos(second)?));
    let text = serde_json::to_value(middle).context("a time as JSON")?;
    Ok(text.as_str().context("a time is text")?.to_owned())
}

/// The history of a pod in each of its forms, of the daemon and of a recording.
pub(crate) async fn a_timeline_in_all_forms(ctx: &TestContext) -> Result<()> {
    let kubepods = Kubepods::make(&ctx.environment)?;
    let directory = tempfile::tempdir().context("make a directory")?;
    let file = directory.path().join("node.kwr");
    ctx.with_agent(&[], async |agent| {
        let (_, id, pod) = a_short_life(agent, &kubepods).await?;
        a_short_life(agent, &kubepods).await?;
        client(ctx, agent.socket(), &format!("record --no-follow -o {}", file.display())).await?.check(0)?;
        for source in [["--socket".as_ref(), agent.socket()], ["--file".as_ref(), file.as_path()]] {
            let form = async |form: &str| {
                let mut command = kwitness(ctx, ["timeline", pod.as_str(), "-o", form]);
                command.args(source);
                bytes(&mut command)
            };
            let text = String::from_utf8(form("text").await?).context("the text is not UTF-8")?;
            ensure!(text.contains(short(&id)) && !text.contains('\u{1b}'), "{text}");
            let json: Value = serde_json::from_slice(&form("json").await?).context("parse the JSON")?;
            let tracks = json["tracks"].as_array().context("no tracks")?;
            ensure!(tracks.iter().any(|track| track["id"] == id.as_str()), "{json:#}");
            let rows = json["events"].as_array().context("no events")?;
            for wanted in ["created", "started", "stopped", "deleted"] {
                let found = rows.iter().filter(|row| row["kind"] == wanted).count();
                ensure!(found == 1, "{found} rows `{wanted}` of one container: {json:#}");
            }
            let html = String::from_utf8(form("html").await?).context("the page is not UTF-8")?;
            ensure!(html.starts_with("<!doctype html>") && html.contains(&id), "{html}");
            let trace = form("perfetto").await?;
            // Each track says what it is, and has something in it.
            ensure!(packets(&trace)? > tracks.len(), "a trace of {} bytes", trace.len());
        }
        // Where it is read, another zone may be the local one.
        let in_zone = |zone: &str| {
            let mut command = kwitness(ctx, ["timeline", pod.as_str(), "-o", "html", "--file"]);
            bytes(command.arg(&file).env("TZ", zone))
        };
        ensure!(in_zone("JST-9")? == in_zone("UTC0")?, "the page depends on the local zone");
        let none = client(ctx, agent.socket(), "timeline no-such-pod").await?;
        none.check(66)?.check_says(&["no-such-pod"])
    })
    .await
}

/// What a command writes, which need be no text.
fn bytes(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// How many packets a Perfetto trace has: `message Trace { repeated TracePacket packet = 1; }`.
fn packets(trace: &[u8]) -> Result<usize> {
    const PACKET: u64 = 1 << 3 | 2;
    let (mut left, mut count) = (trace, 0);
    while !left.is_empty() {
        let tag = prost::encoding::decode_varint(&mut left).context("a field")?;
        ensure!(tag == PACKET, "a field with the tag {tag} after {count} packets");
        let length = usize::try_from(prost::encoding::decode_varint(&mut left).context("a length")?)?;
        left = left.get(length..).context("the last packet is cut off")?;
        count += 1;
    }
    Ok(count)
}

/// The incident that ships with the program is played without a daemon, and can be saved.
pub(crate) async fn the_demo_needs_no_daemon(ctx: &TestContext) -> Result<()> {
    let played = run(kwitness(ctx, ["demo", "--no-wait"])).await?;
    ensure!(played.check(0)?.stdout.contains("OOMKilled"), "{}", played.stdout);
    let directory = tempfile::tempdir().context("make a directory")?;
    let file = directory.path().join("incident.kwr");
    let mut save = kwitness(ctx, ["demo", "--save"]);
    save.arg(&file);
    run(save).await?.check(0)?;
    let timeline = of_file(ctx, &file, "timeline greedy").await?;
    ensure!(timeline.check(0)?.stdout.contains("OOMKilled"), "{}", timeline.stdout);
    Ok(())
}

/// An archive for a bug report is whole, names nothing that it was asked to leave out, and never has what only a process knows.
pub(crate) async fn an_archive_for_a_bug_report(ctx: &TestContext) -> Result<()> {
    let kubepods = Kubepods::make(&ctx.environment)?;
    let directory = tempfile::tempdir().context("make a directory")?;
    ctx.with_agent(&[&format!("node.name={SECRET}")], async |agent| {
        let mut watcher = agent.watch(from_now()).await?;
        let container = kubepods.container()?;
        let id = container.id.clone();
        // It stops, with the password in its environment and in its command line.
        let script = format!("TOKEN={PASSWORD} exec /usr/bin/busybox sh -c 'kill -STOP $$' {PASSWORD}");
        let mut process = container.start("/usr/bin/busybox", &["sh", "-c", &script])?;
        watcher.wait_until("the second program", |seen| seen.has(&id, "exec")).await?;
        let mut archives = Vec::new();
        for flags in [&[][..], &["--redact"]] {
            let file = directory.path().join(format!("{}.tar.zst", flags.len()));
            let mut command = kwitness(ctx, ["bugtool", "-o"]);
            command.arg(&file).args(flags).arg("--socket").arg(agent.socket());
            run(command).await?.check(0)?;
            archives.push(unpack(&file)?);
        }
        process.kill().context("kill the container")?;
        process.wait().context("wait for the container")?;
        let [plain, redacted] = &archives[..] else { unreachable!("two were made") };
        for archive in [plain, redacted] {
            let wanted =
                ["README.txt", "status.json", "containers.json", "doctor.json", "events.kwr", "kernel.txt"];
            let missing: Vec<_> = wanted.into_iter().filter(|name| !archive.contains_key(*name)).collect();
            ensure!(missing.is_empty(), "{missing:?} are missing: {}", archive["errors.txt"]);
            let file = directory.path().join("events.kwr");
            fs::write(&file, &archive["events.kwr"]).context("write the recording")?;
            of_file(ctx, &file, "events -o json").await?.check(0)?;
        }
        ensure!(plain["status.json"].contains(SECRET), "{}", plain["status.json"]);
        let found: Vec<_> = redacted.iter().filter(|(_, text)| text.contains(SECRET)).collect();
        ensure!(found.is_empty(), "{found:#?}");
        for archive in [plain, redacted] {
            let found: Vec<_> = archive.iter().filter(|(_, text)| text.contains(PASSWORD)).collect();
            ensure!(found.is_empty(), "{found:#?}");
        }
        Ok(())
    })
    .await
}

/// The files of an archive.
fn unpack(archive: &Path) -> Result<BTreeMap<String, String>> {
    let file = File::open(archive).with_context(|| format!("open {}", archive.display()))?;
    let plain = ruzstd::decoding::StreamingDecoder::new(file).map_err(|error| anyhow::anyhow!("{error}"))?;
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(plain).entries().context("read the archive")? {
        let mut entry = entry.context("read the archive")?;
        let path = entry.path().context("a name")?.into_owned();
        let name = path.file_name().context("a file's name")?.to_string_lossy().into_owned();
        let mut text = String::new();
        entry.read_to_string(&mut text).with_context(|| format!("read {name}"))?;
        files.insert(name, text);
    }
    Ok(files)
}
