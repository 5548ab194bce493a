//! What the commands print, and how they end.

use std::collections::HashSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};

use kwitness_api::proto::{ContainerState, Event, State, StatusResponse};
use kwitness_tests::events::short;
use kwitness_tests::prelude::*;
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;

use crate::command::{Done, a_short_life, client, kwitness, run};

const LIMIT: Duration = Duration::from_secs(30);

/// Each line an object of the API in its canonical JSON: parsed, and the same when written again.
pub(crate) fn json_lines<T: DeserializeOwned + serde::Serialize>(done: &Done) -> Result<Vec<T>> {
    done.check(0)?;
    let lines = done.stdout.lines().map(|line| {
        let parsed: T = serde_json::from_str(line).with_context(|| format!("parse {line}"))?;
        let again = serde_json::to_value(&parsed).context("write it again")?;
        let plain: serde_json::Value = serde_json::from_str(line).context("parse as plain JSON")?;
        ensure!(again == plain, "not the canonical JSON of what it is:\n{line}\n{again}");
        Ok(parsed)
    });
    lines.collect()
}

/// The cells of a table, by its head; fails if a cell does not begin below its heading.
fn column<'a>(table: &'a str, heading: &str) -> Result<Vec<&'a str>> {
    let mut lines = table.lines();
    let head = lines.next().context("an empty table")?;
    let place = head.find(heading).with_context(|| format!("no {heading} in `{head}`"))?;
    let cells = lines.map(|line| {
        let before = line.get(..place).with_context(|| format!("`{line}` ends before {heading}"))?;
        ensure!(place == 0 || before.ends_with(' '), "`{line}` is not aligned below `{head}`");
        Ok(line[place..].split("  ").next().unwrap_or_default().trim_end())
    });
    cells.collect()
}

pub(crate) async fn events_of_the_past(ctx: &TestContext) -> Result<()> {
    let kubepods = Kubepods::make(&ctx.environment)?;
    ctx.with_agent(&[], async |agent| {
        let (watcher, id, _) = a_short_life(agent, &kubepods).await?;
        let seen = watcher.seen();
        let reported: Vec<_> = seen.events().cloned().collect();

        let json = client(ctx, agent.socket(), "events --no-follow -o json").await?;
        let mut events: Vec<Event> = json_lines(&json)?;
        ensure!(events == reported, "JSON shows:\n{}\nand a watcher got:\n{seen}", json.stdout);
        ensure!(!json.stdout.contains('\u{1b}'), "colours in JSON");

        let since = client(ctx, agent.socket(), "events --no-follow --since 1h -o json").await?;
        ensure!(json_lines::<Event>(&since)? == events, "--since 1h shows:\n{}", since.stdout);
        let none =
            client(ctx, agent.socket(), "events --no-follow --since 2100-01-01T00:00:00Z -o json").await?;
        ensure!(json_lines::<Event>(&none)?.is_empty(), "from the future:\n{}", none.stdout);

        let yaml = client(ctx, agent.socket(), "events --no-follow -o yaml").await?;
        let documents = yaml.check(0)?.stdout.split("---\n").filter(|text| !text.is_empty()).count();
        ensure!(documents == events.len(), "{documents} YAML documents of {} events", events.len());

        for format in ["table", "wide"] {
            let done = client(ctx, agent.socket(), &format!("events --no-follow -o {format}")).await?;
            let table = &done.check(0)?.stdout;
            ensure!(!table.contains('\u{1b}'), "colours in a pipe");
            let kinds: Vec<_> = events.iter().map(kind).collect();
            ensure!(column(table, "EVENT")? == kinds, "the kinds in:\n{table}");
            let details = column(table, "DETAIL")?;
            let stopped = details.iter().zip(&kinds).find(|(_, kind)| **kind == "stopped");
            ensure!(stopped.is_some_and(|(detail, _)| detail.contains('7')), "the exit code in:\n{table}");
        }
        // A container without a name is shown by its id.
        events.retain(|event| event.container.as_ref().is_some_and(|container| container.id == id));
        ensure!(!events.is_empty(), "no events of {id}");
        let table = client(ctx, agent.socket(), "events --no-follow").await?.stdout;
        ensure!(column(&table, "CONTAINER")?.contains(&short(&id)), "{} is not in:\n{table}", short(&id));
        Ok(())
    })
    .await
}

pub(crate) async fn filters(ctx: &TestContext) -> Result<()> {
    let kubepods = Kubepods::make(&ctx.environment)?;
    ctx.with_agent(&[], async |agent| {
        let (_, id, pod) = a_short_life(agent, &kubepods).await?;
        let (watcher, _, _) = a_short_life(agent, &kubepods).await?;
        watcher.seen().check_complete()?;
        let all: Vec<Event> = json_lines(&client(ctx, agent.socket(), "events --no-follow -o json").await?)?;
        let of_first = |event: &&Event| event.container.as_ref().is_some_and(|container| container.id == id);
        let expected: Vec<_> = all.iter().filter(of_first).cloned().collect();
        for filter in
            [format!("--container {}", short(&id)), format!("--container {id}"), format!("--pod {pod}")]
        {
            let done = client(ctx, agent.socket(), &format!("events --no-follow -o json {filter}")).await?;
            ensure!(json_lines::<Event>(&done)? == expected, "{filter} shows:\n{}", done.stdout);
        }
        let done = client(ctx, agent.socket(), "events --no-follow -o json --kind exited,deleted").await?;
        let kinds: HashSet<_> = json_lines::<Event>(&done)?.iter().map(kind).collect();
        ensure!(kinds == HashSet::from(["exited", "deleted"]), "{kinds:?}");

        client(ctx, agent.socket(), "events --since yesterday")
            .await?
            .check(2)?
            .check_says(&["yesterday", "RFC 3339"])?;
        client(ctx, agent.socket(), "evnets").await?.check(2)?.check_says(&["evnets", "events"])
    })
    .await
}

pub(crate) async fn the_list_of_containers(ctx: &TestContext) -> Result<()> {
    let kubepods = Kubepods::make(&ctx.environment)?;
    ctx.with_agent(&[], async |agent| {
        let none = client(ctx, agent.socket(), "ps").await?;
        none.check(0)?.check_says(&["no containers"])?;
        ensure!(none.stdout.is_empty(), "{}", none.stdout);
        let none = client(ctx, agent.socket(), "verify -A").await?;
        none.check(17)?.check_says(&["no containers found", "nothing to verify"])?;

        let container = kubepods.run()?;
        wait_for("the container to run", LIMIT, async || {
            let done = client(ctx, agent.socket(), "ps -o json").await?;
            let [state] = &json_lines::<ContainerState>(&done)?[..] else { return Ok(None) };
            Ok((state.state() == State::Running).then_some(()))
        })
        .await?;
        let pid = container.pid().to_string();
        for format in ["table", "wide"] {
            let table = client(ctx, agent.socket(), &format!("ps -o {format}")).await?.stdout;
            ensure!(column(&table, "PID")? == [pid.as_str()], "the pid {pid} in:\n{table}");
            ensure!(column(&table, "STATE")? == ["Running"], "the state in:\n{table}");
            ensure!(table.contains(short(container.id())), "the id in:\n{table}");
        }
        let other = client(ctx, agent.socket(), "ps -o json --namespace elsewhere").await?;
        other.check(66)?.check_says(&["no namespace \"elsewhere\""])?;
        ensure!(other.stdout.is_empty(), "elsewhere:\n{}", other.stdout);
        container.end().map(drop)
    })
    .await
}

pub(crate) async fn the_status(ctx: &TestContext) -> Result<()> {
    ctx.with_agent(&["node.name=here"], async |agent| {
        let json: Vec<StatusResponse> = json_lines(&client(ctx, agent.socket(), "status -o json").await?)?;
        let [status] = &json[..] else { anyhow::bail!("{} statuses", json.len()) };
        ensure!(status.node_name == "here", "{}", status.node_name);
        ensure!(!status.capabilities.is_empty() && status.lost.is_empty(), "{status:?}");
        for capability in &status.capabilities {
            ensure!(
                !capability.vital || !capability.hook.is_empty(),
                "{capability:?} is not met, and the daemon runs"
            );
            ensure!(
                !capability.hook.is_empty() || !capability.remedy.is_empty(),
                "{capability:?}: not met, and no remedy"
            );
        }
        for format in ["table", "wide"] {
            let text = client(ctx, agent.socket(), &format!("status -o {format}")).await?;
            for words in [status.epoch.as_str(), &status.kernel_release, &status.version, "here"] {
                ensure!(text.check(0)?.stdout.contains(words), "{words} is not in:\n{}", text.stdout);
            }
        }
        Ok(())
    })
    .await
}

pub(crate) async fn the_doctor_with_and_without_a_daemon(ctx: &TestContext) -> Result<()> {
    let check = |done: &Done, daemon: bool| -> Result<()> {
        let report: serde_json::Value =
            serde_json::from_str(&done.check(0)?.stdout).context("parse the report")?;
        ensure!(report["healthy"] == true && report["daemon"] == daemon, "{report:#}");
        let capabilities = report["capabilities"].as_array().context("no capabilities")?;
        let met = capabilities
            .iter()
            .filter(|capability| capability["hook"].as_str().is_some_and(|hook| !hook.is_empty()));
        ensure!(met.count() > 0, "{report:#}");
        Ok(())
    };
    let nowhere = Path::new("/run/kwitness-is-not-here.sock");
    check(&client(ctx, nowhere, "doctor -o json").await?, false)?;
    let text = client(ctx, nowhere, "doctor").await?;
    ensure!(text.check(0)?.stdout.contains("kwitness daemon"), "no word about the daemon:\n{}", text.stdout);
    ctx.with_agent(&["pressure.mode=off"], async |agent| {
        let beside = client(ctx, agent.socket(), "doctor -o json").await?;
        check(&beside, true)?;
        // By the daemon's configuration, of which this command knows nothing else.
        for words in ["the running daemon's", "pressure.mode is \\\"off\\\""] {
            ensure!(beside.stdout.contains(words), "{words} is not in:\n{}", beside.stdout);
        }
        // The hooks that the daemon has are not disturbed by a look at them.
        let kubepods = Kubepods::make(&ctx.environment)?;
        a_short_life(agent, &kubepods).await?.0.seen().check_complete()
    })
    .await
}

pub(crate) async fn completion_and_manual(ctx: &TestContext) -> Result<()> {
    for (arguments, words) in [
        (&["completion", "bash"][..], "kwitness"),
        (&["completion", "zsh"], "#compdef kwitness"),
        (&["man"], ".TH kwitness"),
        (&["man", "events"], "since"),
        (&["--version"], "kwitness "),
        (&["events", "--help"], "--no-follow"),
    ] {
        let done = run(kwitness(ctx, arguments)).await?;
        ensure!(done.check(0)?.stdout.contains(words), "{arguments:?}: no {words} in:\n{}", done.stdout);
    }
    Ok(())
}

/// `kwitness events`, watching: its head is printed.
fn following(ctx: &TestContext, agent: &Agent) -> Result<(Child, BufReader<ChildStdout>)> {
    let mut command = kwitness(ctx, ["events"]);
    command.arg("--socket").arg(agent.socket()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("start `kwitness events`")?;
    let mut output = BufReader::new(child.stdout.take().context("no output")?);
    let mut head = String::new();
    output.read_line(&mut head).context("read the table's head")?;
    ensure!(head.contains("EVENT"), "the head is `{head}`");
    Ok((child, output))
}

/// That a command ends with that code and without a word.
fn check_quiet_end(child: Child, code: i32) -> Result<()> {
    let done = child.wait_with_output().context("wait for `kwitness events`")?;
    ensure!(done.status.code() == Some(code), "{}", done.status);
    ensure!(done.stderr.is_empty(), "{}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

pub(crate) async fn events_end_with_control_c(ctx: &TestContext) -> Result<()> {
    ctx.with_agent(&[], async |agent| {
        let (child, output) = following(ctx, agent)?;
        process::signal(child.id(), Signal::SIGINT)?;
        drop(output);
        check_quiet_end(child, 130)
    })
    .await
}

pub(crate) async fn events_end_quietly_with_a_closed_pipe(ctx: &TestContext) -> Result<()> {
    let kubepods = Kubepods::make(&ctx.environment)?;
    ctx.with_agent(&[], async |agent| {
        let (child, output) = following(ctx, agent)?;
        // As `| head -1` does.
        drop(output);
        a_short_life(agent, &kubepods).await?;
        check_quiet_end(child, 0)
    })
    .await
}

pub(crate) async fn events_go_on_after_a_restart_of_the_daemon(ctx: &TestContext) -> Result<()> {
    let kubepods = Kubepods::make(&ctx.environment)?;
    let mut agent = Agent::start(&ctx.environment, &[]).await?;
    let (mut child, output) = following(ctx, &agent)?;
    agent.restart().await?;
    let back = wait_for("`kwitness events` to come back", LIMIT, async || {
        Ok((agent.status().await?.watchers > 0).then_some(()))
    });
    back.await?;
    let (_, id, _) = a_short_life(&agent, &kubepods).await?;
    let lines = tokio::task::spawn_blocking(move || -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for line in output.lines() {
            lines.push(line.context("read the events")?);
            if lines.last().is_some_and(|line| line.contains("deleted")) {
                break;
            }
        }
        Ok(lines)
    });
    let lines = tokio::time::timeout(LIMIT, lines).await.context("no events after the restart")???;
    let of_it = lines.iter().filter(|line| line.contains(short(&id))).collect::<Vec<_>>();
    let expected = ["created", "started", "exited", "stopped", "deleted"];
    let as_expected = of_it.len() == expected.len()
        && of_it.iter().zip(expected).all(|(line, word)| line.split_whitespace().any(|cell| cell == word));
    ensure!(as_expected, "{}", lines.join("\n"));
    child.kill().context("kill `kwitness events`")?;
    let done = child.wait_with_output().context("wait for `kwitness events`")?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(said.contains("gone") && said.contains("back"), "it said `{said}`");
    agent.stop()
}

pub(crate) async fn verdicts_and_containers_go_on_after_a_restart(ctx: &TestContext) -> Result<()> {
    for words in [&["verify", "--all", "-w"][..], &["ps", "-w"]] {
        let mut agent = Agent::start(&ctx.environment, &[]).await?;
        let mut command = kwitness(ctx, words);
        command.arg("--socket").arg(agent.socket()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start {words:?}"))?;
        let notes = BufReader::new(child.stderr.take().context("no standard error")?);
        let watching =
            wait_for("it to watch", LIMIT, async || Ok((agent.status().await?.watchers > 0).then_some(())));
        watching.await.with_context(|| format!("{words:?}"))?;
        agent.restart().await?;
        let notes = tokio::task::spawn_blocking(move || -> Result<String> {
            let mut said = String::new();
            for line in notes.lines() {
                said += &line.context("read its notes")?;
                if said.contains("is back") {
                    break;
                }
            }
            Ok(said)
        });
        let said = tokio::time::timeout(LIMIT, notes).await.context("it does not come back")???;
        ensure!(said.contains("is gone") && said.contains("is back"), "{words:?} said `{said}`");
        process::signal(child.id(), Signal::SIGINT)?;
        let status = child.wait().with_context(|| format!("wait for {words:?}"))?;
        ensure!(status.code() == Some(130), "{words:?}: {status}");
        agent.stop()?;
    }
    Ok(())
}

/// A program whose name has what terminals act on: escape sequences of C0 and C1, and a bidirectional mark.
pub(crate) async fn hostile_names_reach_no_terminal(ctx: &TestContext) -> Result<()> {
    let kubepods = Kubepods::make(&ctx.environment)?;
    let directory = tempfile::tempdir().context("make a directory")?;
    let program = directory.path().join("evil\u{1b}]0;x\u{7}\r\n\u{9b}2J\u{202e}\u{7f}");
    std::fs::copy("/usr/bin/busybox", &program).context("copy a program")?;
    let program = program.to_str().context("a path that is not UTF-8")?;
    ctx.with_agent(&[], async |agent| {
        let mut watcher = agent.watch(from_now()).await?;
        let container = kubepods.container()?;
        let id = container.id.clone();
        // What it does, and how it ends, is of no matter.
        container.start(program, &[])?.wait().context("wait for it")?;
        drop(container);
        watcher.wait_until("the container's end", |seen| seen.has(&id, "deleted")).await?;
        for line in [
            "events --no-follow",
            "events --no-follow -o wide",
            "events --no-follow -o json",
            "events --no-follow -o yaml",
            "timeline",
            "timeline -o json",
        ] {
            let done = client(ctx, agent.socket(), line).await?;
            ensure!(done.check(0)?.stdout.contains("evil"), "`{line}` does not show it: {}", done.stdout);
            let acts =
                |character: char| character != '\n' && (character.is_control() || character == '\u{202e}');
            ensure!(!done.stdout.chars().any(acts), "`{line}` printed {:?}", done.stdout);
        }
        Ok(())
    })
    .await
}
