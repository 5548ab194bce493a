//! Roots: Debian trees with a container runtime, made by mmdebstrap, and their disks for guests.
//!
//! A tree is only ever used below an overlay or copied to a disk; nothing runs in it in place.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::apt::Mirrors;
use super::{disk, programs};
use crate::architecture::Architecture;
use crate::run;
use crate::step::{Step, key};
use crate::versions::{EVERY_ROOT, Init, ROOTS, RootSpec};
use crate::workspace::{Cache, Turn};

const INIT: &str = include_str!("../../guest/init");
const JOB: &str = include_str!("../../guest/job");
const JOB_SERVICE: &str = include_str!("../../guest/job.service");
/// Units that a guest has no use for, or that would start what a job starts itself.
const MASKED: &[&str] = &[
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "containerd.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "getty.target",
    "systemd-hwdb-update.service",
    "systemd-logind.service",
    "systemd-networkd.service",
    "systemd-random-seed.service",
    "systemd-resolved.service",
    "systemd-timesyncd.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-udev-trigger.service",
    "systemd-udevd.service",
    "systemd-update-utmp.service",
];
/// Free bytes on a guest's root: containerd unpacks images and containers write there.
const ROOM: u64 = 1 << 30;

impl RootSpec {
    pub fn find(name: &str) -> Result<&'static Self> {
        ROOTS.iter().find(|root| root.name == name).with_context(|| {
            let names: Vec<_> = ROOTS.iter().map(|root| root.name).collect();
            format!("no root {name}: there are {}", names.join(", "))
        })
    }

    pub fn architecture(&self) -> Architecture {
        Architecture::of(self.name)
    }

    pub fn tree(&self, cache: &Cache) -> Result<PathBuf> {
        Ok(cache.dir(&format!("roots/{}", self.name))?.join("tree"))
    }

    pub fn image(&self, cache: &Cache) -> Result<PathBuf> {
        Ok(cache.dir(&format!("roots/{}", self.name))?.join("disk.img"))
    }

    pub fn ensure_tree(&self, cache: &Cache) -> Result<()> {
        let tree = self.tree(cache)?;
        Step { name: &format!("root {}", self.name), inputs: &[&self.key()], outputs: &[&tree] }.run(
            cache,
            || {
                self.bootstrap(cache, &tree)?;
                self.finish(cache, &tree)
            },
        )
    }

    /// Makes the disk out of the tree, unless it is there.
    pub fn ensure_image(&self, cache: &Cache) -> Result<()> {
        let image = self.image(cache)?;
        let name = format!("disk {}", self.name);
        Step { name: &name, inputs: &[&self.key()], outputs: &[&image] }
            .run(cache, || disk::root(&self.tree(cache)?, &image, ROOM, &cache.log(&name)?))
    }

    fn key(&self) -> String {
        let init = match self.init {
            Init::Script => INIT,
            Init::Systemd => JOB_SERVICE,
        };
        let qexit = programs::qexit_source(self.architecture());
        key(&[&[self.suite, init, JOB, qexit], EVERY_ROOT, self.packages, MASKED].concat())
    }

    /// The packages, unpacked; with systemd also configured, since its units need users and links.
    fn bootstrap(&self, cache: &Cache, tree: &Path) -> Result<()> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "making a root needs root, since its files belong to root: run `cargo xtask setup` once as root"
        );
        let mirrors = Mirrors::find()?;
        let dir = tree.parent().context("a tree is in its root's directory")?;
        let tar = dir.join("tree.tar");
        let log = cache.log(&format!("root {}", self.name))?;
        let variant = match self.init {
            Init::Script => "extract",
            Init::Systemd => "apt",
        };
        let packages = [EVERY_ROOT, self.packages].concat().join(",");
        let mut command = Command::new("mmdebstrap");
        command.args([
            "--mode=root",
            "--format=tar",
            &format!("--variant={variant}"),
            &format!("--include={packages}"),
            &format!("--architectures={}", self.architecture().name()),
        ]);
        // The lists of sid expire within days, and a mirror may lag.
        command.args(["--aptopt=Acquire::Check-Valid-Until \"false\"", "--aptopt=Acquire::Retries \"3\""]);
        command.arg("--dpkgopt=force-unsafe-io");
        command.arg("--aptopt=APT::Install-Recommends \"false\"");
        for unused in ["doc", "man", "locale", "info"] {
            command.arg(format!("--dpkgopt=path-exclude=/usr/share/{unused}/*"));
        }
        command.arg(self.suite).arg(&tar).arg(mirrors.source(self.suite));
        run::logged(&mut command, &log).with_context(|| {
            format!("mmdebstrap cannot make a {} tree: check the network; see {}", self.suite, log.display())
        })?;
        // A node may run on the old one.
        let _turn = cache.lock(Turn::HostNode)?;
        if tree.exists() {
            fs::remove_dir_all(tree).with_context(|| format!("remove the old {}", tree.display()))?;
        }
        fs::create_dir(tree).with_context(|| format!("create {}", tree.display()))?;
        run::logged(
            Command::new("tar").arg("--extract").arg("--file").arg(&tar).arg("--directory").arg(tree),
            &log,
        )
        .with_context(|| format!("unpack {}; is the disk full?", tar.display()))?;
        fs::remove_file(&tar).with_context(|| format!("remove {}", tar.display()))
    }

    /// What scripts of packages that did not run, or an administrator, would have made.
    fn finish(&self, cache: &Cache, tree: &Path) -> Result<()> {
        let directory = |name: &str| -> Result<()> {
            let path = tree.join(name);
            fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))
        };
        let link = |name: &str, target: &str| -> Result<()> {
            let path = tree.join(name);
            if fs::symlink_metadata(&path).is_ok() {
                return Ok(());
            }
            symlink(target, &path).with_context(|| format!("link {}", path.display()))
        };
        let file = |name: &str, mode: u32, content: &[u8]| -> Result<()> {
            let path = tree.join(name);
            // A package may have left a link there, even one that points out of the tree.
            if fs::symlink_metadata(&path).is_ok_and(|found| !found.is_dir()) {
                fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
            }
            fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
            fs::set_permissions(&path, Permissions::from_mode(mode))
                .with_context(|| format!("chmod {}", path.display()))
        };

        for name in
            ["dev", "etc", "mnt", "proc", "root", "run", "sys", "tmp", "var/lib/containerd", "var/log"]
        {
            directory(name)?;
        }
        for name in
            ["usr/bin", "usr/sbin", "usr/lib/kwitness", "usr/lib/modules", "usr/lib64", "usr/local/bin"]
        {
            directory(name)?;
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            // Packages of bookworm still have files there; a package that did not run would have moved them.
            let apart = tree.join(name);
            if fs::symlink_metadata(&apart).is_ok_and(|found| found.is_dir()) {
                let log = cache.log(&format!("root {}", self.name))?;
                let mut copy = Command::new("cp");
                copy.args(["--archive", "--"]).arg(apart.join(".")).arg(tree.join("usr").join(name));
                run::logged(&mut copy, &log)?;
                fs::remove_dir_all(&apart).with_context(|| format!("remove {}", apart.display()))?;
            }
            link(name, &format!("usr/{name}"))?;
        }
        link("var/run", "/run")?;
        // Without these two RunPodSandbox fails: containerd copies them into every pod.
        file("etc/hosts", 0o644, b"127.0.0.1 localhost guest\n")?;
        file("etc/resolv.conf", 0o644, b"")?;
        file("etc/hostname", 0o644, b"guest\n")?;
        file("usr/local/bin/qexit", 0o755, &programs::read(cache, self.architecture(), "qexit")?)?;
        file("usr/lib/kwitness/job", 0o755, JOB.as_bytes())?;

        match self.init {
            Init::Script => {
                file(
                    "etc/passwd",
                    0o644,
                    b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
                )?;
                file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
                file("etc/nsswitch.conf", 0o644, b"passwd: files\ngroup: files\nhosts: files\n")?;
                file("init", 0o755, INIT.as_bytes())?;
                let busybox = match self.architecture() {
                    Architecture::HOST => tree.join("usr/bin/busybox"),
                    // Its own does not run here: this machine's has the same.
                    _ => PathBuf::from(programs::BUSYBOX),
                };
                let applets = run::output(Command::new(busybox).arg("--list"))?;
                for applet in applets.lines() {
                    let packaged = ["usr/bin", "usr/sbin"].map(|dir| tree.join(dir).join(applet));
                    if !packaged.iter().any(|path| path.exists()) {
                        link(&format!("usr/local/bin/{applet}"), "/usr/bin/busybox")?;
                    }
                }
                // Which of them `iptables` is, is decided by a script of its package.
                if tree.join("usr/sbin/iptables-nft").exists() {
                    link("usr/sbin/iptables", "iptables-nft")?;
                }
                link("usr/bin/sh", "busybox")
            }
            Init::Systemd => {
                file("etc/fstab", 0o644, b"")?;
                file("etc/machine-id", 0o444, b"00000000000000000000000000000001\n")?;
                directory("etc/systemd/journald.conf.d")?;
                file("etc/systemd/journald.conf.d/guest.conf", 0o644, b"[Journal]\nStorage=none\n")?;
                file("etc/systemd/system/kwitness-job.service", 0o644, JOB_SERVICE.as_bytes())?;
                directory("etc/systemd/system/multi-user.target.wants")?;
                let wants = "etc/systemd/system/multi-user.target.wants/kwitness-job.service";
                link(wants, "../kwitness-job.service")?;
                MASKED.iter().try_for_each(|unit| link(&format!("etc/systemd/system/{unit}"), "/dev/null"))
            }
        }
    }
}
