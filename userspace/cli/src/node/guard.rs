//! `kwitness guard`: flags into options, logging, the runtime; the status and the dry run as text.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use kwitness_api::client::Address;
use kwitness_guard::policy::Policy;
#[cfg(feature = "kubernetes")]
use kwitness_guard::raise::Kubernetes;
use kwitness_guard::raise::{Cri, Raiser};
use kwitness_guard::status::{self, Status};
use kwitness_guard::{Options, PRIVILEGES, dry_run, watchdog};
use kwitness_service::configuration;
use kwitness_service::http::HttpAddress;
use kwitness_service::log;
use kwitness_service::log::LogFormat;
use kwitness_service::privileges::{Privilege, for_bpf, held, keep_only};

use crate::connect;
use crate::exit::Code;
use crate::options;
use crate::output::{Format, Output};

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Guard {
    #[command(subcommand)]
    command: Option<Command>,
    /// The policy: which containers are guarded, and within what bounds (TOML); a regular file
    #[arg(long, value_name = "FILE", required = true)]
    policy: Option<PathBuf>,
    /// Print what the policy selects and what a raise would do now; hold and raise nothing
    #[arg(long)]
    dry_run: bool,
    /// The container runtime's socket; "auto": the first that exists of containerd's, k3s's,
    /// CRI-O's and cri-dockerd's
    #[arg(long, value_name = "PATH", default_value = "auto")]
    runtime_endpoint: String,
    #[cfg(feature = "kubernetes")]
    #[command(flatten)]
    access: Access,
    /// The Unix socket for `kwitness guard status`
    #[arg(long, value_name = "PATH", default_value = kwitness_guard::STATUS_SOCKET)]
    status_socket: PathBuf,
    /// A directory in a BPF file system, of this guard alone: what is held is recorded there, so that nothing stays stopped
    #[arg(long, value_name = "DIR", default_value = kwitness_guard::PIN_DIRECTORY)]
    pin_directory: PathBuf,
    /// What is logged to standard error, as the setting log.level
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = super::log_level)]
    log_level: String,
    /// Log format
    #[arg(long, default_value = "text", value_name = "FORMAT")]
    log_format: LogFormat,
    /// Serve /metrics, /livez, /readyz and /startupz at this address: IP:PORT or unix:///PATH [default: nowhere]
    #[arg(long, value_name = "ADDRESS")]
    http_listen: Option<HttpAddress>,
}

/// Access to the Kubernetes API.
#[cfg(feature = "kubernetes")]
#[derive(Debug, clap::Args)]
struct Access {
    /// Raise limits through the Kubernetes API (pods/resize) instead of the container runtime:
    /// where a kubelet runs the pods
    #[arg(long)]
    kubernetes: bool,
    /// The kubeconfig for it [default: $KUBECONFIG, ~/.kube/config, or the service account]
    #[arg(long, value_name = "FILE", requires = "kubernetes")]
    kubeconfig: Option<PathBuf>,
    /// This node's name in the API; a pod that is bound to another node is not raised
    #[arg(long, value_name = "NAME", requires = "kubernetes")]
    node: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what is armed and held, and how the last holds ended
    Status {
        /// The guard's Unix socket
        #[arg(long, value_name = "PATH", default_value = kwitness_guard::STATUS_SOCKET)]
        status_socket: PathBuf,
        #[command(flatten)]
        output: options::Output,
    },
    /// Continue what a guard holds that does not do it itself; started by it
    #[command(hide = true)]
    Watchdog {
        /// Where the guard pinned lease and records
        pin_directory: PathBuf,
    },
}

pub fn run(mut options: Guard, socket: Option<OsString>) -> anyhow::Result<Code> {
    match options.command.take() {
        Some(Command::Watchdog { pin_directory }) => {
            let _flush = log::start("info", LogFormat::Text)?;
            watchdog::run(&pin_directory)?;
            return Ok(Code::Success);
        }
        Some(Command::Status { status_socket, output }) => {
            return connect::run(show_status(status_socket, output.output));
        }
        None => {}
    }
    let file = options.policy.take().context("--policy is missing")?;
    let daemon = connect::address(socket);
    if options.dry_run {
        return connect::run(show_dry_run(read(&file)?, daemon, options.uses_kubernetes()));
    }
    // Before there is another thread; the watchdog inherits what is left.
    keep_only(for_bpf(Privilege::set(&PRIVILEGES), held()?))?;
    let log = log::start(&options.log_level, options.log_format);
    connect::run_to_its_end(async move {
        // Whatever fails from here on, nothing that an ended guard held stays stopped.
        let recovered = kwitness_guard::recover(&options.pin_directory).await?;
        let _flush = log?;
        let policy = read(&file)?;
        let raiser = raiser(&options).await?;
        let Guard { status_socket, pin_directory, http_listen: http, .. } = options;
        let options = Options { policy, daemon, raiser, status_socket, pin_directory, http };
        kwitness_guard::run(options, recovered).await?;
        Ok(Code::Success)
    })
}

impl Guard {
    /// Whether limits are raised through the Kubernetes API.
    fn uses_kubernetes(&self) -> bool {
        #[cfg(feature = "kubernetes")]
        return self.access.kubernetes;
        #[cfg(not(feature = "kubernetes"))]
        false
    }
}

/// Who makes the raises.
async fn raiser(options: &Guard) -> anyhow::Result<Raiser> {
    #[cfg(feature = "kubernetes")]
    if options.uses_kubernetes() {
        let Access { kubeconfig, node, .. } = &options.access;
        return Ok(Raiser::Kubernetes(Kubernetes::connect(kubeconfig.as_deref(), node.clone()).await?));
    }
    let endpoint = (options.runtime_endpoint != "auto").then(|| Path::new(&options.runtime_endpoint));
    Ok(Raiser::Cri(Cri::connect(endpoint).await?))
}

fn read(file: &Path) -> anyhow::Result<Policy> {
    let text = configuration::read("the policy", file, "--policy")?;
    Policy::parse(&text).with_context(|| file.display().to_string())
}

async fn show_status(socket: PathBuf, format: Format) -> anyhow::Result<Code> {
    let status = status::fetch(&socket).await?;
    let mut output = Output::new();
    match format {
        Format::Json | Format::Yaml | Format::Name => output.value(format, &status)?,
        Format::Table | Format::Wide => text(&status).lines().try_for_each(|line| output.line(line))?,
    }
    output.flush()?;
    Ok(Code::Success)
}

/// The status for people.
fn text(status: &Status) -> String {
    let Status { pid, watchdog_pid, hook, armed, not_armed, history, raised, refused, .. } = status;
    let Status { returned, not_returned, not_held, .. } = status;
    let refusals: u64 = refused.values().sum();
    let watchdog =
        watchdog_pid.map_or_else(|| "lost: nothing is held".to_owned(), |pid| format!("pid {pid}"));
    let mut text = format!(
        "guard pid {pid}, watchdog {watchdog}, {hook}\n\
         {raised} raised, {refusals} refused{}\n",
        counts(refused)
    );
    if *returned > 0 || !not_returned.is_empty() {
        let refusals: u64 = not_returned.values().sum();
        text += &format!("{returned} given back, {refusals} not{}\n", counts(not_returned));
    }
    if !not_held.is_empty() {
        text += &format!("above a threshold and not held{}\n", counts(not_held));
    }
    let count = armed.iter().filter(|armed| armed.suspended.is_none()).count();
    text += &format!("\n{count} armed\n");
    for of in armed {
        let held: Vec<_> = of.held.iter().map(u32::to_string).collect();
        let held = if held.is_empty() { String::new() } else { format!(", held: {}", held.join(" ")) };
        let original =
            of.original_limit.map(|limit| format!(", limit was {}", kwitness_core::units::bytes(limit)));
        let original = original.unwrap_or_default();
        let suspended = of.suspended.as_ref().map(|reason| format!(", suspended: {reason}"));
        let suspended = suspended.unwrap_or_default();
        text += &format!("  {}  raises {}/{}{original}{suspended}{held}\n", of.name, of.raises, of.budget);
    }
    if !not_armed.is_empty() {
        text += &format!("not armed{}\n", counts(not_armed));
    }
    if !history.is_empty() {
        text += &format!("\nlast {}\n", history.len());
    }
    for of in history {
        let id: String = of.container_id.chars().take(13).collect();
        let bytes = kwitness_core::units::bytes;
        let outcome = match (of.raised_to, &of.refused) {
            (Some(to), _) => {
                let unverified = if of.unverified { ", unverified" } else { "" };
                format!("raised from {} to {}{unverified}", bytes(of.limit), bytes(to))
            }
            (None, Some(reason)) => format!("refused: {reason} (limit {})", bytes(of.limit)),
            (None, None) => String::new(),
        };
        text += &format!("  {id}  {outcome}, after {} ms\n", of.decided_ms);
    }
    text
}

/// ": name n, name n", or nothing.
fn counts(of: &std::collections::BTreeMap<String, u64>) -> String {
    let words: Vec<_> = of.iter().map(|(name, count)| format!("{name} {count}")).collect();
    if words.is_empty() { String::new() } else { format!(": {}", words.join(", ")) }
}

async fn show_dry_run(policy: Policy, daemon: Address, by_kubelet: bool) -> anyhow::Result<Code> {
    let dry_run::Outlook { rows, unnamed, protected } = dry_run::outlook(&policy, daemon, by_kubelet).await?;
    let mut output = Output::new();
    if rows.is_empty() && unnamed.is_empty() && protected.is_empty() {
        output.line("no running container matches the policy")?;
    }
    rows.iter().try_for_each(|row| output.line(&outlook(row)))?;
    for container in &unnamed {
        output.line(&format!("{}: its names are not known yet: not guarded until they are", container.id))?;
    }
    for (container, protected) in &protected {
        output.line(&format!("{}: not guarded: {protected}", container.display_name()))?;
    }
    output.flush()?;
    Ok(Code::Success)
}

/// What would become of a container.
fn outlook(row: &dry_run::Row) -> String {
    let name = row.container.display_name();
    let usage = row.usage;
    let (Some(limit), Some(raise)) = (row.limit, &row.raise) else {
        return format!("{name}: {usage} used, no limit: never held");
    };
    let used = format!("{name}: {usage} of {limit} used");
    let share = match row.share {
        Ok(per_mille) => f64::from(per_mille) / 10.0,
        Err(reason) => return format!("{used}; not held: {reason}"),
    };
    match raise {
        Ok(raise) => format!("{used}; held at {share}%, then raised to {}", raise.to),
        Err(refusal) => format!("{used}; held at {share}%, then refused: {refusal}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kwitness_guard::NoShare;
    use kwitness_guard::daemon::Container;
    use kwitness_guard::plan::{Change, Refusal};
    use kwitness_guard::policy::Bytes;

    use super::*;

    #[test]
    fn a_policy_with_errors_is_a_configuration_error() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("guard.toml");
        assert_eq!(crate::exit::code(Err(read(&file).unwrap_err())), Code::Configuration, "it is not there");
        std::fs::write(&file, "[[rule]]\nstap = \"1Mi\"\n").unwrap();
        let error = read(&file).unwrap_err();
        let expected = format!("{}: line 2: there is no key \"stap\"; did you mean step?", file.display());
        assert_eq!(format!("{error:#}"), expected);
        assert_eq!(crate::exit::code(Err(error)), Code::Configuration);
    }

    #[test]
    fn a_dry_run_says_from_what_share_on_a_container_is_held_and_what_then() {
        let bytes = |mib: u64| Bytes(mib << 20);
        let change = Change { from: bytes(64), to: bytes(128) };
        let container = Container {
            id: "c".to_owned(),
            is_identified: true,
            cgroup_id: 7,
            cgroup_path: "/c".to_owned(),
            namespace: Some("dev".to_owned()),
            pod: Some("web".to_owned()),
            pod_uid: None,
            name: Some("app".to_owned()),
        };
        let row = |limit, share, raise| {
            let container = container.clone();
            outlook(&dry_run::Row { container, limit, usage: bytes(12), share, raise })
        };
        let limit = Some(bytes(64));
        let raised = |share| row(limit, share, Some(Ok(change)));
        assert_eq!(raised(Ok(900)), "dev/web/app: 12Mi of 64Mi used; held at 90%, then raised to 128Mi");
        assert_eq!(raised(Ok(731)), "dev/web/app: 12Mi of 64Mi used; held at 73.1%, then raised to 128Mi");
        let not_held = raised(Err(NoShare::NoHeadroom));
        assert!(
            not_held.starts_with("dev/web/app: 12Mi of 64Mi used; not held: its processes"),
            "{not_held}"
        );
        let refused = row(limit, Ok(900), Some(Err(Refusal::Unanswered)));
        assert!(refused.contains("; held at 90%, then refused: "), "{refused}");
        assert_eq!(row(None, Ok(900), None), "dev/web/app: 12Mi used, no limit: never held");
    }

    /// What the guard's own process and its watchdog need of the service manager, or nothing stays stopped only while both live.
    #[test]
    fn the_unit_leaves_the_watchdog_alone_and_the_capabilities() {
        let unit = include_str!("../../../../deploy/systemd/kwitness-guard.service");
        let has = |line: &str| unit.lines().any(|found| found == line);
        for line in [
            "KillMode=process",
            "OOMPolicy=continue",
            "Restart=on-failure",
            "RestartPreventExitStatus=78",
            "Type=notify",
        ] {
            assert!(has(line), "{line}");
        }
        let granted = unit.lines().filter_map(|line| line.strip_prefix("CapabilityBoundingSet="));
        let mut kept = PRIVILEGES.map(|privilege| privilege.name()).to_vec();
        // The unit's files are root's.
        assert_eq!(kept.pop().as_deref(), Some("CAP_DAC_READ_SEARCH"));
        assert_eq!(granted.collect::<Vec<_>>(), kept);
        assert!(
            Path::new(kwitness_guard::LOCK_FILE).starts_with("/run/kwitness")
                && has("RuntimeDirectory=kwitness")
        );
    }

    #[test]
    fn the_status_says_what_is_held_and_how_holds_ended() {
        let ended = |raised_to, refused: Option<&str>| status::Ended {
            container_id: "0123456789abcdef".to_owned(),
            held: vec![7],
            usage: 60 << 20,
            limit: 64 << 20,
            raised_to,
            unverified: raised_to.is_some(),
            refused: refused.map(str::to_owned),
            raised_ms: Some(40),
            decided_ms: 52,
            steps: status::Steps::default(),
        };
        let status = Status {
            pid: 1,
            watchdog_pid: Some(2),
            watchdog_restarts: 0,
            hook: "fentry".to_owned(),
            armed: vec![status::Armed {
                container_id: "c".to_owned(),
                name: "dev/web/app".to_owned(),
                held: vec![7, 8],
                raises: 1,
                budget: 8,
                original_limit: Some(64 << 20),
                suspended: Some("atCeiling".to_owned()),
            }],
            not_armed: BTreeMap::from([("atCeiling".to_owned(), 1), ("full".to_owned(), 2)]),
            history: vec![ended(Some(128 << 20), None), ended(None, Some("atCeiling"))],
            raised: 1,
            refused: BTreeMap::from([("atCeiling".to_owned(), 1)]),
            returned: 2,
            not_returned: BTreeMap::from([("limitChanged".to_owned(), 1)]),
            not_held: BTreeMap::from([("traced".to_owned(), 3)]),
        };
        let expected = "guard pid 1, watchdog pid 2, fentry\n\
                        1 raised, 1 refused: atCeiling 1\n\
                        2 given back, 1 not: limitChanged 1\n\
                        above a threshold and not held: traced 3\n\n\
                        0 armed\n  dev/web/app  raises 1/8, limit was 64Mi, suspended: atCeiling, held: 7 8\n\
                        not armed: atCeiling 1, full 2\n\n\
                        last 2\n  0123456789abc  raised from 64Mi to 128Mi, unverified, after 52 ms\n  \
                        0123456789abc  refused: atCeiling (limit 64Mi), after 52 ms\n";
        assert_eq!(text(&status), expected);
        let lost = Status { watchdog_pid: None, ..status };
        assert!(text(&lost).starts_with("guard pid 1, watchdog lost: nothing is held, fentry\n"));
    }
}
