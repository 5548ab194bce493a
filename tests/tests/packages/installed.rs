//! The life of an installed package.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use kwitness_tests::context::TestContext;
use kwitness_tests::process::run;
use nix::unistd::Group;

const PROGRAM: &str = "/usr/bin/kwitness";
const UNIT: &str = "kwitness.service";
const DIRECTORY: &str = "/run/kwitness";
const SOCKET: &str = "/run/kwitness/kwitness.sock";
const PINS: &str = "/sys/fs/bpf/kwitness";
/// What units, group and directory are made of.
const INSTALLED: &[&str] = &[
    PROGRAM,
    "/usr/lib/systemd/system/kwitness.service",
    "/usr/lib/systemd/system/kwitness-cri-proxy.service",
    "/usr/lib/systemd/system/kwitness-cri-proxy.socket",
    "/usr/lib/systemd/system/kwitness-export.service",
    "/usr/lib/systemd/system/kwitness-guard.service",
    "/usr/lib/sysusers.d/kwitness.conf",
    "/usr/lib/tmpfiles.d/kwitness.conf",
];
/// A user without any permission, and the exit code that reports that.
const NOBODY: u32 = 65534;
const DENIED: i32 = 77;

pub(crate) async fn a_package_serves_its_group_and_leaves_nothing_running(ctx: &TestContext) -> Result<()> {
    let deb = ctx.environment.job.join("kwitness.deb");
    let install = || run(Command::new("dpkg").arg("--install").arg(&deb));
    install()?;
    let units = INSTALLED.iter().filter(|path| path.contains("/system/"));
    run(Command::new("systemd-analyze").arg("verify").args(units))?;
    let group = Group::from_name("kwitness")?.context("the package made no group kwitness")?.gid.as_raw();
    let directory = owner_and_mode(DIRECTORY)?;
    ensure!(directory == (0, group, 0o750), "{DIRECTORY}: {directory:?}, the group is {group}");
    ensure!(!is_active()?, "the installation has started {UNIT}");

    // The unit is ready when the API is served.
    systemctl(&["start", UNIT])?;
    let pid = main_pid()?;
    ensure!(fs::metadata(SOCKET)?.file_type().is_socket(), "{SOCKET} is no socket");
    for (path, mode) in [(DIRECTORY, 0o750), (SOCKET, 0o660)] {
        let found = owner_and_mode(path)?;
        ensure!(found == (0, group, mode), "{path}: {found:?}, the group is {group}");
    }
    run(Command::new(PROGRAM).arg("doctor"))?;
    let member = as_nobody(group)?;
    ensure!(member == Some(0), "a member of the group may not use the API: {member:?}");
    let other = as_nobody(NOBODY)?;
    ensure!(other == Some(DENIED), "another user: {other:?}, not {DENIED}");

    systemctl(&["reload", UNIT])?;
    ensure!(main_pid()? == pid, "a reload has ended the daemon");

    // What runs is replaced, and stays.
    install()?;
    ensure!(is_active()?, "the upgrade has stopped {UNIT}");
    ensure!(main_pid()? != pid, "the upgrade has left the old process");

    ensure!(Path::new(PINS).exists(), "nothing is pinned in {PINS}");
    run(Command::new("dpkg").args(["--remove", "kwitness"]))?;
    ensure!(!is_active()?, "{UNIT} runs without its package");
    for path in INSTALLED.iter().chain(&[PINS, SOCKET]) {
        ensure!(!fs::exists(path)?, "the removal has left {path}");
    }
    Ok(())
}

/// `kwitness ps` as a user of that group alone: its exit code.
fn as_nobody(group: u32) -> Result<Option<i32>> {
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={NOBODY}"), format!("--regid={group}"), "--clear-groups".to_owned()]);
    let status = command.args([PROGRAM, "ps"]).stdin(Stdio::null()).status().context("start setpriv")?;
    Ok(status.code())
}

fn owner_and_mode(path: &str) -> Result<(u32, u32, u32)> {
    let found = fs::metadata(path).with_context(|| format!("stat {path}"))?;
    Ok((found.uid(), found.gid(), found.mode() & 0o7777))
}

fn is_active() -> Result<bool> {
    let status = Command::new("systemctl").args(["--quiet", "is-active", UNIT]).status();
    Ok(status.context("start systemctl")?.success())
}

fn main_pid() -> Result<String> {
    systemctl(&["show", "--property=MainPID", "--value", UNIT])
}

/// A failure shows what the unit logged.
fn systemctl(arguments: &[&str]) -> Result<String> {
    run(Command::new("systemctl").args(arguments)).with_context(|| {
        let log = run(Command::new("journalctl").args(["--no-pager", "--lines=50", "--unit", UNIT]));
        log.unwrap_or_else(|error| error.to_string())
    })
}
