//! What the person sees: the narrator's lines, and between them the table of the real `kwitness events` command.
//!
//! Owns standard output and the command. A step is over when the command has printed a line for each event that
//! an API client got: so cause and event stand together, and an event that the command does not show is noticed.

use std::io::{BufRead, BufReader, IsTerminal, stdout};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use anstyle::{AnsiColor, Style};
use kwitness_tests::cri::v1::VersionRequest;
use kwitness_tests::prelude::*;
use nix::sys::signal::Signal;

const NARRATOR: Style = AnsiColor::Cyan.on_default().bold();
const TITLE: Style = Style::new().bold();

/// The kinds of events that the person sees. Not `exited`: a runtime's helpers come and go in every container, and how
/// its own program ended is in `stopped`, too. The verdict looks at all kinds.
const SHOWN: [&str; 6] = ["created", "updated", "started", "exec", "stopped", "deleted"];

/// How the command says that Ctrl-C ended it.
const INTERRUPTED: i32 = 130;

/// How long the command may be behind an API client.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) struct Stage {
    watcher: Watcher,
    command: Child,
    printer: JoinHandle<()>,
    printed: Arc<AtomicUsize>,
    pause: Duration,
}

pub(crate) fn say(text: &str) {
    anstream::println!("\n{NARRATOR}▶ {text}{NARRATOR:#}");
}

pub(crate) fn title(environment: &Environment) -> Result<()> {
    let kernel = nix::sys::utsname::uname().context("ask for the kernel's name")?;
    let cgroups = match environment.layout {
        CgroupLayout::Unified => "cgroup v2",
        CgroupLayout::Hybrid => "hybrid cgroups",
    };
    let kernel = kernel.release().to_string_lossy();
    anstream::println!("{TITLE}kwitness, live{TITLE:#} on kernel {kernel} with {cgroups}");
    Ok(())
}

pub(crate) async fn introduce(node: &Node, agent: &Agent) -> Result<()> {
    let runtime = node.cri().version(VersionRequest { version: "v1".to_owned() }).await?;
    let status = agent.status().await?;
    let in_use = status.capabilities.iter().filter(|capability| !capability.hook.is_empty()).count();
    anstream::println!(
        "  {} {}, {} cgroup driver; kwitness {}, {in_use} of {} kernel hooks in use",
        runtime.runtime_name,
        runtime.runtime_version,
        node.driver().name(),
        status.version,
        status.capabilities.len()
    );
    Ok(())
}

impl Stage {
    /// Starts `kwitness events` and shows what it prints.
    pub(crate) async fn open(
        environment: &Environment,
        agent: &Agent,
        watcher: Watcher,
        pause: Duration,
    ) -> Result<Self> {
        let mut command = Command::new(environment.kwitness());
        let kinds = SHOWN.join(",");
        command.args(["events", "--kind", &kinds, "--socket"]).arg(agent.socket());
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        anstream::println!("\n  {TITLE}$ kwitness events --kind {kinds}{TITLE:#}");
        if stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()) {
            // It writes into our pipe, and we write to the terminal.
            command.env("CLICOLOR_FORCE", "1");
        }
        let mut command = command.spawn().context("start `kwitness events`")?;
        let output = command.stdout.take().context("`kwitness events` has no output")?;
        let printed = Arc::new(AtomicUsize::new(0));
        let begun = Arc::new(AtomicBool::new(false));
        let (count, head) = (Arc::clone(&printed), Arc::clone(&begun));
        let printer = std::thread::spawn(move || {
            // The first line is the table's head.
            for (number, line) in BufReader::new(output).lines().map_while(Result::ok).enumerate() {
                anstream::println!("  {line}");
                count.store(number, Ordering::Release);
                head.store(true, Ordering::Release);
            }
        });
        // It prints the head once it watches.
        let watching = wait_for("`kwitness events` to watch", COMMAND_LIMIT, async || {
            Ok(begun.load(Ordering::Acquire).then_some(()))
        });
        watching.await?;
        Ok(Self { watcher, command, printer, printed, pause })
    }

    /// Waits until an API client has got what passes, and the command has shown all that the client got.
    pub(crate) async fn wait_until(&mut self, what: &str, accept: impl Fn(&Seen) -> bool) -> Result<()> {
        let seen = self.watcher.wait_until(what, accept).await?;
        let seen = seen.events().filter(|event| SHOWN.contains(&kind(event))).count();
        wait_for("`kwitness events` to show it", COMMAND_LIMIT, async || {
            Ok((self.printed.load(Ordering::Acquire) >= seen).then_some(()))
        })
        .await
        .with_context(|| format!("an API client got {seen} events of the kinds that it shows"))
    }

    pub(crate) async fn pause(&self) {
        tokio::time::sleep(self.pause).await;
    }

    /// Ends the command as a person would, with Ctrl-C, and gives all that the client saw.
    pub(crate) fn close(mut self) -> Result<Seen> {
        process::signal(self.command.id(), Signal::SIGINT)?;
        let status = self.command.wait().context("wait for `kwitness events`")?;
        ensure!(status.code() == Some(INTERRUPTED), "`kwitness events` ended badly after Ctrl-C: {status}");
        ensure!(self.printer.join().is_ok(), "the printing of `kwitness events` broke off");
        Ok(self.watcher.seen())
    }
}

pub(crate) fn item(label: &str, text: &str) {
    anstream::println!("  {label:<12}{text}");
}
