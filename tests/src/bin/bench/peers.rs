//! kwitness beside what a user would pick instead, on the same processes: what each costs them, what each takes itself, and how many
//! of them it sees.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kwitness_tests::prelude::*;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;

use crate::footprint::{cpu_times, ran, resident};
use crate::overhead::{Client, inside, outside, time};
use crate::report::{Row, Target};

const ROUNDS: usize = 6;
const ROUNDS_IN_A_GUEST: usize = 2;
const FORKS: u32 = 400;
const FORKS_IN_A_GUEST: u32 = 40;
/// The short processes of which each is to be seen: their execs and their ends.
const SHORT: u32 = 5000;
const SHORT_IN_A_GUEST: u32 = 500;
/// bpftrace compiles, perf reads the kernel's symbols.
const START_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(30);
/// Longer than the longest rest of any reader.
const SETTLE: Duration = Duration::from_millis(200);
const TRACING: &str = "/sys/kernel/tracing";
/// The program of which a tool has to show that it sees something.
const MARKER: &str = "kw-ready";

/// Another tool: programs that print what they see.
struct Peer {
    name: &'static str,
    programs: &'static [&'static [&'static str]],
    /// How a line about the marker, or any process, begins or what it contains.
    shows: &'static str,
}

/// The name of the floor, which counts by parent: it has no names.
const FLOOR: &str = "proc connector";

const BPFTRACE: &str = r#"tracepoint:sched:sched_process_fork { printf("fork %d %d\n", args->parent_pid, args->child_pid); }
tracepoint:sched:sched_process_exec { printf("exec %d %s\n", pid, comm); }
tracepoint:sched:sched_process_exit /pid == tid/ { printf("exit %d %s\n", pid, comm); }"#;

const PEERS: [Peer; 4] = [
    Peer { name: FLOOR, programs: &[&["/proc/self/exe", "connector"]], shows: "exec " },
    Peer {
        name: "execsnoop + exitsnoop",
        programs: &[&["execsnoop-libbpf"], &["exitsnoop-libbpf"]],
        shows: MARKER,
    },
    Peer { name: "bpftrace", programs: &[&["bpftrace", "-e", BPFTRACE]], shows: MARKER },
    Peer {
        name: "perf trace",
        programs: &[&[
            "perf",
            "trace",
            "-a",
            "-e",
            "sched:sched_process_fork,sched:sched_process_exec,sched:sched_process_exit",
        ]],
        shows: MARKER,
    },
];

const KWITNESS: &str = "kwitness";

enum Running {
    /// The daemon, and a client that reads everything.
    Kwitness(Agent, Client),
    Tools(Vec<Managed>, tempfile::TempDir),
}

impl Running {
    async fn start(environment: &Environment, peer: Option<&Peer>) -> Result<Self> {
        let Some(peer) = peer else {
            let agent = Agent::start(environment, &["log.level=warn"]).await?;
            let client = Client::start(agent.socket(), 1)?;
            return Ok(Self::Kwitness(agent, client));
        };
        let directory = tempfile::tempdir_in("/run").context("make a directory in /run")?;
        let marker = directory.path().join(MARKER);
        symlink("/usr/bin/busybox", &marker).context("make the marker")?;
        let mut tools = Vec::new();
        for (number, words) in peer.programs.iter().enumerate() {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]);
            let log = log(&directory, number);
            tools.push(Managed::spawn(peer.name, command, &log).context("not installed, or not started")?);
        }
        let seen = wait_for("the tool to show a process", START_LIMIT, async || {
            for tool in &mut tools {
                tool.check_running()?;
            }
            // It prints blocks, so that it takes many. Which applet it is does not matter.
            let mut command = Command::new(&marker);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().context("run the marker")?;
            let shown = |number| {
                fs::read(log(&directory, number))
                    .is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(peer.shows))
            };
            Ok((0..tools.len()).all(shown).then_some(()))
        });
        seen.await?;
        Ok(Self::Tools(tools, directory))
    }

    fn pids(&self) -> Vec<u32> {
        match self {
            Self::Kwitness(agent, client) => vec![agent.pid(), client.pid()],
            Self::Tools(tools, _) => tools.iter().map(Managed::pid).collect(),
        }
    }

    /// In megabytes.
    fn memory(&self) -> Result<f64> {
        self.pids().into_iter().map(|pid| Ok(resident(pid)? / 1e6)).sum()
    }

    fn stop(self) -> Result<()> {
        match self {
            Self::Kwitness(agent, client) => {
                drop(client);
                agent.stop()
            }
            Self::Tools(mut tools, _) => interrupt(&mut tools),
        }
    }

    /// Of so many processes that another one makes in a container, how many execs and ends it sees; and ends it.
    async fn seen(self, container: &HandMade, count: u32) -> Result<usize> {
        let command = ["forks", &count.to_string()];
        match self {
            Self::Kwitness(agent, client) => {
                drop(client);
                let mut watcher = agent.watch(from_now()).await?;
                time(container.start("/proc/self/exe", &command)?)?;
                let ended = watcher.wait_until("stopped", |seen| seen.has(&container.id, "stopped"));
                let seen = ended.await?;
                agent.stop()?;
                let of = |name| seen.of(&container.id).filter(|event| kind(event) == name).count();
                // The one that makes them ends, too.
                Ok(of("exec") + of("exited").saturating_sub(1))
            }
            Self::Tools(mut tools, directory) => {
                let child = container.start("/proc/self/exe", &command)?;
                let parent = child.id();
                time(child)?;
                tokio::time::sleep(SETTLE).await;
                interrupt(&mut tools)?;
                let mut text = String::new();
                for number in 0..tools.len() {
                    let bytes = fs::read(log(&directory, number)).context("read what the tool printed")?;
                    text.push_str(&String::from_utf8_lossy(&bytes));
                }
                Ok(lines_about(&text, parent))
            }
        }
    }
}

/// How many of the lines are about processes that `parent` made: by their program's name, or, of the floor, by their parent.
fn lines_about(text: &str, parent: u32) -> usize {
    let named = text.lines().filter(|line| line.contains("busybox")).count();
    let mut children = HashSet::new();
    let mut found = 0;
    for line in text.lines() {
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["fork", by, child] if by == parent.to_string() => _ = children.insert(child),
            ["exec" | "exit", pid] => found += usize::from(children.contains(pid)),
            _ => {}
        }
    }
    named.max(found)
}

/// Ends the tools as a person would, so that they print what they still have.
fn interrupt(tools: &mut [Managed]) -> Result<()> {
    for tool in tools {
        tool.signal(Signal::SIGINT)?;
        tool.wait(STOP_LIMIT)?;
    }
    Ok(())
}

fn log(directory: &tempfile::TempDir, number: usize) -> PathBuf {
    directory.path().join(format!("{number}.out"))
}

#[derive(Default)]
struct Figures {
    outside: Vec<f64>,
    inside: Vec<f64>,
    cpu: Vec<f64>,
    memory: Vec<f64>,
    seen: Vec<f64>,
}

pub(crate) async fn measure(environment: &Environment) -> Result<Vec<Row>> {
    let (rounds, forks, short) =
        environment.of_tier((ROUNDS, FORKS, SHORT), (ROUNDS_IN_A_GUEST, FORKS_IN_A_GUEST, SHORT_IN_A_GUEST));
    if !Path::new(TRACING).join("events").exists() {
        // Where that is refused, the tools say what they miss.
        let none = None::<&str>;
        if let Err(error) = mount(Some("tracefs"), TRACING, Some("tracefs"), MsFlags::empty(), none) {
            eprintln!("no tracefs at {TRACING}: {error}");
        }
    }
    let kubepods = Kubepods::make(environment)?;
    let container = kubepods.container()?;
    let mut without = Figures::default();
    let mut all: Vec<(Option<&Peer>, Result<Figures>)> =
        [None].into_iter().chain(PEERS.iter().map(Some)).map(|peer| (peer, Ok(Figures::default()))).collect();
    // The first round warms caches and is not counted.
    for round in 0..=rounds {
        let (out, within) = (outside(forks)?, inside(&container, forks)?);
        if round > 0 {
            without.outside.push(out);
            without.inside.push(within);
        }
        for (peer, figures) in &mut all {
            let Ok(known) = figures else { continue };
            if let Err(error) =
                one_round(environment, *peer, &container, forks, (round > 0).then_some(known)).await
            {
                *figures = Err(error);
            }
        }
    }
    for (peer, figures) in &mut all {
        let Ok(known) = figures else { continue };
        // Of its own, so that nothing of the rounds is counted.
        let container = kubepods.container()?;
        let running = Running::start(environment, *peer).await;
        let seen = match running {
            Ok(running) => running.seen(&container, short).await,
            Err(error) => Err(error),
        };
        match seen {
            Ok(count) => known.seen.push(count as f64 / f64::from(2 * short) * 100.0),
            Err(error) => *figures = Err(error),
        }
    }
    let rows = all.into_iter().map(|(peer, figures)| {
        let name = peer.map_or(KWITNESS, |peer| peer.name);
        match figures {
            Ok(figures) => rows(name, &without, &figures, rounds, forks, short),
            Err(error) => vec![Row::missing(&format!("peers: {name}"), &format!("{error:#}"))],
        }
    });
    Ok(rows.flatten().collect())
}

async fn one_round(
    environment: &Environment,
    peer: Option<&Peer>,
    container: &HandMade,
    forks: u32,
    figures: Option<&mut Figures>,
) -> Result<()> {
    let running = Running::start(environment, peer).await?;
    let out = outside(forks)?;
    let before = running.pids().into_iter().map(cpu_times).collect::<Result<Vec<_>>>()?;
    let within = inside(container, forks)?;
    tokio::time::sleep(SETTLE).await;
    let mut busy = Duration::ZERO;
    for (pid, before) in running.pids().into_iter().zip(&before) {
        busy += ran(before, &cpu_times(pid)?);
    }
    let memory = running.memory()?;
    running.stop()?;
    if let Some(figures) = figures {
        figures.outside.push(out);
        figures.inside.push(within);
        figures.cpu.push(busy.as_secs_f64() * 1e6 / f64::from(forks));
        figures.memory.push(memory);
    }
    Ok(())
}

fn rows(name: &str, without: &Figures, with: &Figures, rounds: usize, forks: u32, short: u32) -> Vec<Row> {
    let ratio = |what: &str, with: &[f64], without: &[f64]| {
        let note = format!("fork+exec+exit, against nothing running; {rounds} rounds of {forks}");
        Row::ratio(&format!("peers: {name}: {what}"), with, without, Target::None, note)
    };
    let figure = |what: &str, rounds: &[f64], unit, note: &str| {
        Row::of(&format!("peers: {name}: {what}"), rounds, unit, Target::None, note.to_owned())
    };
    let seen = format!("execs and ends of {short} short processes in a container");
    vec![
        ratio("outside containers", &with.outside, &without.outside),
        ratio("in a container", &with.inside, &without.inside),
        figure("own CPU", &with.cpu, "us", "for a fork+exec+exit in a container; all of its processes"),
        figure(
            "memory",
            &with.memory,
            "MB",
            "resident, all of its processes; maps in the kernel not included",
        ),
        figure("seen", &with.seen, "%", &seen),
    ]
}
