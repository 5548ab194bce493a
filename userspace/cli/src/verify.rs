//! `kwitness verify`: whether the limits that were asked for are in force.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kwitness_core::verdicts::quantity;

use crate::args::{Format, Verify};
use crate::client::{connect, failed, socket};
use crate::describe::{names, verdict_style, word};
use crate::exit::Code;
use crate::limits::{self, reading};
use crate::output::Output;
use crate::table::{Cell, Table};
use crate::text::{UNKNOWN, duration, time_of_day};
use kwitness_api::proto::VerdictKind;
use kwitness_api::proto::wanted::{Cpu, Memory};
use kwitness_api::{EventKind, proto};

/// The longest that the daemon waits.
const WAIT_MAX: Duration = Duration::from_secs(600);
/// The shortest that says anything of a quota's period, and the longest that the daemon watches.
const PROVE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// A memory limit.
pub fn memory(text: &str) -> Result<Memory, String> {
    match text {
        "max" => Ok(Memory::MemoryUnlimited(true)),
        _ => quantity::whole(text).map(Memory::MemoryBytes).map_err(|error| error.to_string()),
    }
}

/// A CPU limit.
pub fn cpu(text: &str) -> Result<Cpu, String> {
    match text {
        "max" => Ok(Cpu::CpuUnlimited(true)),
        _ => match quantity::milli(text).map_err(|error| error.to_string())? {
            0 => Err("no CPU limit is \"max\"; the least is \"1m\"".to_owned()),
            milli => Ok(Cpu::MilliCpu(milli)),
        },
    }
}

/// How long is waited.
pub fn wait(text: &str) -> Result<Duration, String> {
    duration(text)
        .filter(|wait| *wait <= WAIT_MAX)
        .ok_or_else(|| "not a duration from 0s to 10m (\"500ms\", \"10s\", \"1m30s\")".to_owned())
}

/// How long usage is watched.
pub fn prove(text: &str) -> Result<Duration, String> {
    duration(text)
        .filter(|prove| (PROVE.0..=PROVE.1).contains(prove))
        .ok_or_else(|| "not a duration from 100ms to 1m (\"5s\")".to_owned())
}

pub async fn run(named: Option<PathBuf>, options: Verify) -> anyhow::Result<Code> {
    let socket = socket(named);
    let filter = proto::Filter {
        pods: options.name.clone().into_iter().collect(),
        namespaces: options.namespace.clone().into_iter().collect(),
        containers: options.container.clone().into_iter().collect(),
        ..Default::default()
    };
    let request = proto::VerifyRequest {
        filter: Some(filter.clone()),
        wanted: Some(proto::Wanted { memory: options.memory, cpu: options.cpu }),
        wait_ms: u32::try_from(options.wait.as_millis()).unwrap_or(u32::MAX),
        prove_ms: options.prove.map_or(0, |prove| u32::try_from(prove.as_millis()).unwrap_or(u32::MAX)),
    };
    let mut client = connect(&socket).await?;
    // Before the first verdicts, so that none is missed in between.
    let changes = if options.watch {
        let filter = proto::Filter { kinds: vec![EventKind::Verdict.into()], ..filter };
        let request = proto::WatchRequest { filter: Some(filter), ..Default::default() };
        Some(client.watch(request).await.map_err(|status| failed(&socket, &status))?.into_inner())
    } else {
        None
    };
    let answer = client.verify(request).await;
    let answer = match answer {
        Err(status) if status.code() == tonic::Code::NotFound => {
            eprintln!("kwitness: {}", status.message());
            proto::VerifyResponse::default()
        }
        answer => answer.map_err(|status| failed(&socket, &status))?.into_inner(),
    };
    for source in &answer.unavailable {
        eprintln!("kwitness: not heard: {source}");
    }
    if answer.verdicts.is_empty() {
        eprintln!("kwitness: no source asks for a limit: there is nothing to verify");
    }
    let mut printer = Printer { format: options.output.output, output: Output::new(), table: table() };
    printer.print(&answer.verdicts, true)?;
    if let Some(changes) = changes {
        return follow(&socket, changes, printer).await;
    }
    let exceeded =
        |of: &proto::VerdictOf| of.proof.is_some_and(|of| of.proof() == proto::ProofKind::Exceeded);
    Ok(match worst(&answer.verdicts) {
        VerdictKind::InForce if answer.verdicts.iter().any(exceeded) => Code::Exceeded,
        worst => Code::Verdict(worst),
    })
}

async fn follow(
    socket: &Path,
    mut changes: tonic::Streaming<proto::WatchResponse>,
    mut printer: Printer,
) -> anyhow::Result<Code> {
    while let Some(message) = changes.message().await.map_err(|status| failed(socket, &status))? {
        let verdicts: Vec<_> = message
            .events
            .into_iter()
            .filter_map(|event| match event.kind {
                Some(proto::event::Kind::Verdict(verdict)) => Some(proto::VerdictOf {
                    container: event.container,
                    verdict: Some(*verdict),
                    ..Default::default()
                }),
                Some(proto::event::Kind::Gap(_)) => {
                    eprintln!("kwitness: events were lost; verdicts may be missing");
                    None
                }
                _ => None,
            })
            .collect();
        printer.print(&verdicts, false)?;
    }
    Ok(Code::Success)
}

struct Printer {
    format: Format,
    output: Output,
    table: Table<COLUMNS>,
}

impl Printer {
    fn print(&mut self, verdicts: &[proto::VerdictOf], is_first: bool) -> anyhow::Result<()> {
        match self.format {
            Format::Table | Format::Wide => {
                let full = self.format == Format::Wide;
                let rows: Vec<_> = verdicts.iter().map(|verdict| row(verdict, full)).collect();
                self.table.fit(&rows);
                if is_first && !rows.is_empty() {
                    self.output.text(&self.table.header())?;
                }
                for row in &rows {
                    self.output.text(&self.table.line(row))?;
                }
            }
            format => {
                for verdict in verdicts {
                    self.output.value(format, verdict)?;
                }
            }
        }
        Ok(self.output.flush()?)
    }
}

/// Nothing to verify is nothing in force.
fn worst(verdicts: &[proto::VerdictOf]) -> VerdictKind {
    let kinds =
        verdicts.iter().map(|of| of.verdict.as_ref().map_or(VerdictKind::Unknown, proto::Verdict::verdict));
    kinds.max_by_key(|kind| severity(*kind)).unwrap_or(VerdictKind::Unknown)
}

/// What is certain and wrong weighs more than what may still become right.
fn severity(kind: VerdictKind) -> u8 {
    match kind {
        VerdictKind::InForce => 0,
        VerdictKind::Pending => 1,
        VerdictKind::Unknown | VerdictKind::Unspecified => 2,
        VerdictKind::OverLimit => 3,
        VerdictKind::Shadowed => 4,
        VerdictKind::Diverged => 5,
        VerdictKind::Rejected => 6,
        VerdictKind::Reverted => 7,
        VerdictKind::Killed => 8,
    }
}

const COLUMNS: usize = 11;

fn table() -> Table<COLUMNS> {
    let columns = [
        "NAMESPACE",
        "POD",
        "CONTAINER",
        "LIMIT",
        "DESIRED",
        "TOLD",
        "WRITTEN",
        "IN FORCE",
        "EFFECTIVE",
        "VERDICT",
        "REASON",
    ];
    Table::new(columns.map(|heading| (heading, 0)))
}

fn row(of: &proto::VerdictOf, full: bool) -> [Cell; COLUMNS] {
    let verdict = of.verdict.clone().unwrap_or_default();
    let names = match &of.container {
        Some(container) => names(Some(container), full),
        None => limits::names(verdict.cgroup.as_ref(), full),
    };
    let unknown = || UNKNOWN.to_owned();
    let of_source = |wanted: bool| {
        let runtimes = |claim: &&proto::DesiredLimit| (claim.source() == proto::Source::Runtime) != wanted;
        let said = verdict.desired.iter().filter(runtimes).map(|claim| match claim.source() {
            proto::Source::Runtime => claim.value.clone(),
            // The only one whose time is that of the asking.
            proto::Source::CriRequest => {
                format!("{} (CRI request, {})", claim.value, time_of_day(claim.time))
            }
            source => format!("{} ({})", claim.value, source_name(source)),
        });
        let said: Vec<_> = said.collect();
        if said.is_empty() { unknown() } else { said.join(", ") }
    };
    let written = verdict.written.as_ref().map_or_else(unknown, |written| {
        let value = written.value.clone().unwrap_or_else(unknown);
        written.errno_name.as_ref().map_or(value.clone(), |errno| format!("{value} ({errno})"))
    });
    [
        names.namespace.into(),
        names.pod.into(),
        names.container.into(),
        verdict.file.clone().into(),
        of_source(true).into(),
        of_source(false).into(),
        written.into(),
        reading(verdict.in_force.as_ref()).into(),
        verdict.effective.as_ref().map_or_else(unknown, |effective| effective.value.clone()).into(),
        Cell::styled(kind(verdict.verdict()), verdict_style(verdict.verdict())),
        match of.proof {
            Some(proof) => format!("{}; {}", verdict.reason, proved(&verdict.file, &proof)).into(),
            None => verdict.reason.into(),
        },
    ]
}

/// What usage proves, in words.
fn proved(file: &str, proof: &proto::Proof) -> String {
    let interval = Duration::from_nanos(proof.ended.saturating_sub(proof.began));
    let interval = format!("{:.1}s", interval.as_secs_f64());
    let (Some(used), Some(allowed)) = (proof.used, proof.allowed) else {
        return "usage could not be read".to_owned();
    };
    let amount = |number: u64| match file {
        "cpu.max" => format!("{} ms", number / 1000),
        _ => number.to_string(),
    };
    let used = match file {
        "cpu.max" => format!("{} of at most {} of CPU time were used", amount(used), amount(allowed)),
        _ => format!("never less than {} of {} were charged", amount(used), amount(allowed)),
    };
    let times = |count: u64| if count == 1 { "once".to_owned() } else { format!("{count} times") };
    match (proof.proof(), proof.enforced) {
        (proto::ProofKind::Kept, Some(enforced)) => {
            format!("kept to it for {interval}: the kernel enforced it {}, {used}", times(enforced))
        }
        (proto::ProofKind::Exceeded, _) => format!("EXCEEDED for {interval}: {used}"),
        _ => format!("not put to the test for {interval}: {used}"),
    }
}

/// A verdict, in a line.
pub fn sentence(verdict: &proto::Verdict) -> String {
    format!("{}: {}", kind(verdict.verdict()), verdict.reason)
}

fn kind(verdict: VerdictKind) -> String {
    word(verdict.as_str_name(), "VERDICT_KIND_").replace('_', " ")
}

fn source_name(source: proto::Source) -> &'static str {
    match source {
        proto::Source::Client => "asked",
        proto::Source::KubeletAllocated => "allocated",
        proto::Source::CriRequest => "CRI request",
        proto::Source::KubeletActuated => "actuated",
        proto::Source::Runtime => "runtime",
        proto::Source::Unspecified => "unknown",
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    pub fn shadowed() -> proto::Verdict {
        let value =
            |text: &str| Some(proto::Reading { reading: Some(proto::reading::Reading::Value(text.into())) });
        let claim = |source: proto::Source, value: &str| proto::DesiredLimit {
            source: source.into(),
            value: value.into(),
            time: None,
        };
        proto::Verdict {
            cgroup: limits::testing::accepted().cgroup,
            file: "memory.max".into(),
            verdict: VerdictKind::Shadowed.into(),
            reason: "memory.max is 100663296, but the pod's cgroup /kubepods/podu allows only 67108864"
                .into(),
            desired: vec![
                claim(proto::Source::Client, "100663296"),
                claim(proto::Source::KubeletAllocated, "100663296"),
                claim(proto::Source::CriRequest, "100663296"),
                claim(proto::Source::Runtime, "100663296"),
            ],
            compared_with: proto::Source::Client.into(),
            in_force: value("100663296"),
            effective: Some(proto::Effective {
                value: "67108864".into(),
                cgroup_path: "/kubepods/podu".into(),
            }),
            written: limits::testing::refused().write,
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::describe::testing::container;

    fn of(verdict: proto::Verdict) -> proto::VerdictOf {
        proto::VerdictOf { container: Some(container(true)), verdict: Some(verdict), ..Default::default() }
    }

    fn verdict(kind: VerdictKind) -> proto::VerdictOf {
        of(proto::Verdict { verdict: kind.into(), ..Default::default() })
    }

    #[test]
    fn a_table_of_verdicts() {
        let in_force = proto::Verdict {
            file: "cpu.max".into(),
            verdict: VerdictKind::InForce.into(),
            reason: "cpu.max is 50000 100000".into(),
            ..Default::default()
        };
        let rows = [row(&of(testing::shadowed()), false), row(&of(in_force), false)];
        insta::assert_snapshot!(anstream::adapter::strip_str(&table().render(&rows)).to_string());
    }

    #[test]
    fn only_all_in_force_is_in_force() {
        use VerdictKind::{Diverged, InForce, Pending, Unknown};
        assert_eq!(worst(&[]), Unknown, "nothing to verify");
        assert_eq!(worst(&[verdict(InForce), verdict(InForce)]), InForce);
        assert_eq!(worst(&[verdict(InForce), verdict(Pending)]), Pending);
        assert_eq!(worst(&[verdict(Diverged), verdict(Pending), verdict(Unknown)]), Diverged);
    }

    #[test]
    fn proofs_in_words() {
        let proof = |kind: proto::ProofKind, used, enforced| proto::Proof {
            proof: kind.into(),
            began: 1,
            ended: 2_000_000_001,
            used,
            allowed: Some(1_072_000),
            enforced,
        };
        let kept = proof(proto::ProofKind::Kept, Some(1_000_000), Some(19));
        assert_eq!(
            proved("cpu.max", &kept),
            "kept to it for 2.0s: the kernel enforced it 19 times, 1000 ms of at most 1072 ms of CPU time were used"
        );
        let exceeded = proof(proto::ProofKind::Exceeded, Some(2_000_000), None);
        assert_eq!(
            proved("memory.max", &exceeded),
            "EXCEEDED for 2.0s: never less than 2000000 of 1072000 were charged"
        );
        let idle = proof(proto::ProofKind::NotReached, Some(0), None);
        assert!(proved("cpu.max", &idle).starts_with("not put to the test for 2.0s: 0 ms"));
        assert_eq!(
            proved("cpu.max", &proof(proto::ProofKind::Unknown, None, None)),
            "usage could not be read"
        );
        assert!(prove("100ms").is_ok() && prove("99ms").is_err() && prove("61s").is_err());
    }

    #[test]
    fn limits_are_given_as_kubernetes_has_them() {
        assert_eq!(memory("512Mi"), Ok(Memory::MemoryBytes(512 << 20)));
        assert_eq!(memory("max"), Ok(Memory::MemoryUnlimited(true)));
        assert_eq!(cpu("1.5"), Ok(Cpu::MilliCpu(1500)));
        assert_eq!(cpu("max"), Ok(Cpu::CpuUnlimited(true)));
        assert!(cpu("0").unwrap_err().contains("max"));
        assert!(memory("512MB").is_err());
        assert_eq!(wait("10s"), Ok(Duration::from_secs(10)));
        assert!(wait("11m").is_err() && wait("x").is_err());
    }
}
