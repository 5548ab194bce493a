//! One guest: boots a kernel with a root, runs a job in it, and reports how the job ended.
//!
//! ```text
//! xtask ── QEMU ── NVMe "root"     the root's disk; writes go to a file that is dropped
//!              ├── NVMe "modules"  the kernel's modules, at /usr/lib/modules
//!              ├── NVMe "job"      the job, at /run/job
//!              ├── ttyS0           the job's input and output
//!              ├── ttyS1           the kernel's console, kept in a file
//!              ├── ttyS2           "ready UPTIME" and "exit STATUS" from the guest
//!              └── ttyS3           what the job leaves in a file, if it is to leave something ([`LEAVES`])
//! ```
//!
//! A job has ended only when the guest said so on ttyS2 *and* ended QEMU with the same status: QEMU's own 0 is what a
//! guest that reset silently leaves behind. A machine of arm64 has no way to end QEMU with a status: it is turned off.
//!
//! There, the four serial ports are those of a PCI card, which the kernel finds late: its console is the machine's own port, and ttyS1
//! is not used.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::architecture::Architecture;
use crate::job::Job;
use crate::setup::disk;
use crate::signals;
use crate::versions::{Init, KernelSeries, RootSpec};
use crate::workspace::Cache;

/// Where a job writes what [`Guest::leaves`] is to have.
pub const LEAVES: &str = "/dev/ttyS3";

pub struct Guest<'a> {
    pub kernel: &'a KernelSeries,
    pub root: &'a RootSpec,
    /// With how many processors. More than one are emulated in turns: all at once is done faithfully enough only by newer QEMU.
    pub processors: u32,
    /// With how much memory, in MiB.
    pub memory: u32,
    /// After how long it is given up, if ever.
    pub timeout: Option<Duration>,
    /// A file that the job leaves something in, as text with a carriage return before each newline.
    pub leaves: Option<&'a Path>,
}

/// Where a guest's output goes.
pub enum Output {
    /// To our own standard output as it comes; our standard input goes to the guest.
    Terminal,
    /// To our own standard output as it comes, without an input.
    Shown,
    File(File),
}

impl Guest<'_> {
    /// Boots it, runs `job` in it and returns the job's exit status.
    ///
    /// An error means that the job did not end: the guest died, or took too long.
    pub fn run(&self, cache: &Cache, job: &Job, output: Output) -> Result<i32> {
        signals::catch()?;
        let dir = tempfile::tempdir().context("make a temporary directory")?;
        let console = dir.path().join("console");
        let control = dir.path().join("control");
        let job_disk = dir.path().join("job.img");
        disk::plain(job.dir(), &job_disk, &dir.path().join("mke2fs.log"))?;
        let mut command = self.command(cache, &job_disk, &console, &control)?;
        let interactive = matches!(output, Output::Terminal);
        command.stdin(if interactive { Stdio::inherit() } else { Stdio::null() });
        command.stdout(if interactive { Stdio::inherit() } else { Stdio::piped() });
        let mut qemu = command.stderr(Stdio::inherit()).spawn().context("start QEMU")?;

        let copier = qemu.stdout.take().map(|from| std::thread::spawn(move || copy(from, output)));
        let ended = wait(&mut qemu, self.timeout);
        if let Some(copier) = copier {
            // The pipe is closed by now: this ends.
            _ = copier.join();
        }
        let said = fs::read_to_string(&control).unwrap_or_default();
        let console = || {
            let text = fs::read(&console).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            format!("the kernel's console:\n{}", relevant(&text.unwrap_or_default()))
        };
        match ended? {
            Ended::Interrupted => bail!("interrupted"),
            Ended::TimedOut => {
                bail!(
                    "the guest took longer than {} s; {}",
                    self.timeout.unwrap_or_default().as_secs(),
                    console()
                )
            }
            Ended::Itself(status) => match guest_end(&said, status.code(), self.kernel.architecture()) {
                GuestEnd::Exit(status) => Ok(status),
                GuestEnd::Died(why) => bail!("the guest died: {why}; {}", console()),
            },
        }
    }

    fn command(&self, cache: &Cache, job: &Path, console: &Path, control: &Path) -> Result<Command> {
        let architecture = self.kernel.architecture();
        ensure!(
            architecture == self.root.architecture(),
            "the kernel {} and the root {} are of different architectures",
            self.kernel.name,
            self.root.name
        );
        let kernel = self.kernel.files(cache)?;
        let init = match self.root.init {
            Init::Script => "/init",
            Init::Systemd => "/lib/systemd/systemd",
        };
        // mitigations=off: they cost time, and an emulated processor leaks nothing.
        let append = format!(
            "console={} root={} rw rootwait init={init} panic=-1 quiet mitigations=off systemd.show_status=0",
            match architecture {
                Architecture::Amd64 => "ttyS1",
                Architecture::Arm64 => "ttyAMA0",
            },
            disk::root_partition()
        );
        // setpriv, so that a guest does not outlive an xtask that was killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(format!("qemu-system-{}", architecture.machine()));
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args(match architecture {
            // cx16=off: QEMU 7.2 corrupts registers after cmpxchg16b in one boot out of eight.
            Architecture::Amd64 => ["-machine", "q35", "-cpu", "max,cx16=off"],
            // A server's, without pointer authentication, which is slow to emulate.
            Architecture::Arm64 => ["-machine", "virt", "-cpu", "neoverse-n1"],
        });
        let accelerator = if self.processors > 1 { "tcg,thread=single" } else { "tcg" };
        command.args(["-accel", accelerator]);
        command.args(["-smp", &self.processors.to_string(), "-m", &self.memory.to_string()]);
        command.arg("-kernel").arg(kernel.elf).arg("-append").arg(append);
        let mut disk = |serial: &str, file: &Path, options: &str| -> Result<()> {
            let file =
                file.to_str().with_context(|| format!("{} is not UTF-8", file.display()))?.replace(',', ",,");
            command.arg("-drive").arg(format!("if=none,id={serial},file={file},format=raw,{options}"));
            command.arg("-device").arg(format!("nvme,drive={serial},serial={serial}"));
            Ok(())
        };
        disk("root", &self.root.image(cache)?, "snapshot=on,cache=unsafe")?;
        disk("modules", &kernel.modules, "readonly=on")?;
        disk("job", job, "readonly=on")?;
        command.args(["-chardev", "stdio,id=stdio,signal=off"]);
        match architecture {
            Architecture::Amd64 => {
                command.args(["-serial", "chardev:stdio"]);
                for file in [console, control].into_iter().chain(self.leaves) {
                    command.arg("-serial").arg(format!("file:{}", file.display()));
                }
                command.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
            }
            Architecture::Arm64 => {
                command.arg("-serial").arg(format!("file:{}", console.display()));
                let mut card = "pci-serial-4x,chardev1=stdio,chardev3=control".to_owned();
                command.arg("-chardev").arg(format!("file,id=control,path={}", control.display()));
                if let Some(leaves) = self.leaves {
                    command.arg("-chardev").arg(format!("file,id=leaves,path={}", leaves.display()));
                    card += ",chardev4=leaves";
                }
                command.args(["-device", &card]);
            }
        }
        Ok(command)
    }
}

enum Ended {
    Itself(ExitStatus),
    TimedOut,
    Interrupted,
}

fn wait(qemu: &mut Child, timeout: Option<Duration>) -> Result<Ended> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    loop {
        if let Some(status) = qemu.try_wait().context("wait for QEMU")? {
            return Ok(Ended::Itself(status));
        }
        let given_up = if signals::caught() {
            Ended::Interrupted
        } else if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            Ended::TimedOut
        } else {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        qemu.kill().context("kill QEMU")?;
        qemu.wait().context("wait for QEMU")?;
        return Ok(given_up);
    }
}

/// Copies until the guest is gone, passing on each piece as it comes.
fn copy(mut from: impl Read, to: Output) {
    let mut to: Box<dyn Write> = match to {
        Output::Terminal | Output::Shown => Box::new(std::io::stdout()),
        Output::File(file) => Box::new(file),
    };
    let mut buffer = [0; 8192];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        // A reader that went away must not stop the guest half-way.
        _ = to.write_all(&buffer[..count]).and_then(|()| to.flush());
    }
}

/// What of the kernel's console reports why it died: from its first complaint on, or else the end.
fn relevant(console: &str) -> String {
    const LINES: usize = 40;
    const COMPLAINTS: &[&str] = &["Oops", "BUG:", "Kernel panic", "double fault", "Out of memory"];
    let lines: Vec<_> = console.lines().map(str::trim_end).collect();
    let first = lines.iter().position(|line| COMPLAINTS.iter().any(|complaint| line.contains(complaint)));
    let from = first.unwrap_or(lines.len().saturating_sub(LINES));
    lines[from..].iter().take(LINES).copied().collect::<Vec<_>>().join("\n")
}

#[derive(Debug, PartialEq, Eq)]
enum GuestEnd {
    Exit(i32),
    Died(String),
}

/// Brings together what the guest said and how QEMU ended.
fn guest_end(said: &str, qemu: Option<i32>, architecture: Architecture) -> GuestEnd {
    let expected = |exit: i32| match architecture {
        Architecture::Amd64 => (exit & 127) << 1 | 1,
        Architecture::Arm64 => 0,
    };
    let exit = said.lines().find_map(|line| line.trim().strip_prefix("exit ")?.parse::<i32>().ok());
    let ready = said.lines().any(|line| line.starts_with("ready "));
    match (exit, qemu) {
        (Some(exit), Some(qemu)) if qemu == expected(exit) => GuestEnd::Exit(exit),
        (exit, qemu) => {
            let reached = match (ready, exit) {
                (_, Some(exit)) => format!("the job ended with {exit}"),
                (true, None) => "the job had begun".to_owned(),
                (false, None) => "the job had not begun".to_owned(),
            };
            let qemu = qemu.map_or_else(|| "was killed".to_owned(), |status| format!("ended with {status}"));
            GuestEnd::Died(format!("{reached}, QEMU {qemu}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_complaint_of_a_kernel_is_shown() {
        let mut console: Vec<_> = (0..100).map(|n| format!("line {n}")).collect();
        assert!(relevant(&console.join("\r\n")).ends_with("\nline 99"));
        console.insert(20, "Kernel panic - not syncing".to_owned());
        let shown = relevant(&console.join("\n"));
        assert!(shown.starts_with("Kernel panic"), "{shown}");
        assert!(shown.ends_with("\nline 58"), "{shown}");
        assert_eq!(relevant(""), "");
    }

    #[test]
    fn a_job_has_ended_only_when_both_say_so() {
        for (said, qemu, want) in [
            ("ready 2.1\nexit 0\n", Some(1), Ok(0)),
            ("ready 2.1\nexit 42\n", Some(85), Ok(42)),
            ("ready 2.1\nexit 130\n", Some(5), Ok(130)),
            ("", Some(0), Err("not begun")),
            ("ready 2.1\n", Some(0), Err("had begun")),
            ("ready 2.1\nexit 0\n", Some(0), Err("ended with 0")),
            ("ready 2.1\nexit 3\n", Some(1), Err("ended with 3")),
            ("ready 2.1\nexit 0\n", None, Err("was killed")),
            ("ready 2.1\nexit \n", Some(1), Err("had begun")),
        ] {
            match (guest_end(said, qemu, Architecture::Amd64), want) {
                (GuestEnd::Exit(status), Ok(wanted)) => assert_eq!(status, wanted),
                (GuestEnd::Died(why), Err(part)) => assert!(why.contains(part), "{why}"),
                (verdict, want) => panic!("{said:?} {qemu:?}: {verdict:?}, not {want:?}"),
            }
        }
        let on_arm64 = |said, qemu| guest_end(said, qemu, Architecture::Arm64);
        assert_eq!(on_arm64("ready 2.1\nexit 42\n", Some(0)), GuestEnd::Exit(42));
        assert!(matches!(on_arm64("ready 2.1\n", Some(0)), GuestEnd::Died(_)));
        assert!(matches!(on_arm64("ready 2.1\nexit 0\n", None), GuestEnd::Died(_)));
    }
}
