//! Debian's packages: installed on this machine, or fetched from any suite without touching this machine's apt.
//!
//! Owns everything about apt. The mirrors are those this machine is configured with, read at run time.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::architecture::Architecture;
use crate::step::Step;
use crate::workspace::Cache;
use crate::{run, step};

/// How old the list of another suite's packages may be before something is fetched with it.
const LIST_AGE: Duration = Duration::from_secs(3600);

/// Installs those of `packages` that are missing on this machine.
pub fn install(cache: &Cache, what: &str, packages: &[&str]) -> Result<()> {
    let missing: Vec<&str> = packages.iter().copied().filter(|package| !installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    step::timed(what, || {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "installing packages needs root. Run this as root, or install them yourself:\n  apt-get install --no-install-recommends {}",
            missing.join(" ")
        );
        let log = cache.log(what)?;
        run::logged(apt_get().args(["-o", "APT::Update::Error-Mode=any", "update"]), &log).context(
            "apt cannot fetch its package lists: check the network and /etc/apt/sources.list, then try `apt-get update`",
        )?;
        run::logged(apt_get().args(["install", "--yes", "--no-install-recommends"]).args(&missing), &log)
            .with_context(|| format!("apt cannot install {}: try it by hand to see why", missing.join(" ")))
    })
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args([
        "-q",
        "-o",
        "DPkg::Lock::Timeout=600",
        "-o",
        "Acquire::Retries=3",
    ]);
    command
}

fn installed(package: &str) -> bool {
    run::output(Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]))
        .is_ok_and(|status| status == "installed")
}

/// Programs out of a suite's package, into the cache's tools, unless they are there. They run where that suite's C library does, and need
/// nothing else.
pub fn programs(cache: &Cache, suite: &str, package: &str, names: &[&str]) -> Result<()> {
    let programs: Vec<PathBuf> = names.iter().map(|name| cache.tool(name)).collect();
    let outputs: Vec<&Path> = programs.iter().map(PathBuf::as_path).collect();
    let step = format!("{} of {suite}", names.join(", "));
    Step { name: &step, inputs: &[suite, package], outputs: &outputs }.run(cache, || {
        let suites = Suites::open(cache, &Mirrors::find()?, &[suite], Architecture::HOST)?;
        cache.dir("tools/bin")?;
        let unpacked =
            tempfile::tempdir_in(cache.root()).context("make a temporary directory in the cache")?;
        let tree = unpacked.path().join("tree");
        fs::create_dir(&tree).with_context(|| format!("create {}", tree.display()))?;
        suites.unpack(&[package.to_owned()], &tree)?;
        for (name, program) in names.iter().zip(&programs) {
            fs::copy(tree.join("usr/bin").join(name), program)
                .with_context(|| format!("{package} of {suite} has no /usr/bin/{name}"))?;
        }
        Ok(())
    })
}

pub struct Mirrors {
    main: String,
    security: String,
}

impl Mirrors {
    pub fn find() -> Result<Self> {
        let format = ["indextargets", "--format", "$(REPO_URI) $(RELEASE)"];
        let targets = run::output(Command::new("apt-get").args(format))?;
        let release = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
        let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
        Self::parse(&targets, codename.unwrap_or("stable"))
    }

    fn parse(targets: &str, codename: &str) -> Result<Self> {
        let repository = |suffix: &str| {
            let names = [codename, "stable"].map(|name| format!("{name}{suffix}"));
            let mut pairs = targets.lines().filter_map(|line| line.split_once(' '));
            Some(pairs.find(|(_, release)| names.iter().any(|name| name == release))?.0.to_owned())
        };
        match (repository(""), repository("-security")) {
            (Some(main), Some(security)) => Ok(Self { main, security }),
            _ => bail!(
                "apt has no {codename} and {codename}-security of Debian: /etc/apt/sources.list needs both, as a \
                 fresh Debian has them"
            ),
        }
    }

    /// The line of a sources list for a suite.
    pub fn source(&self, suite: &str) -> String {
        let uri = if suite.ends_with("-security") { &self.security } else { &self.main };
        format!("deb [signed-by={KEYRING}] {uri} {suite} main")
    }
}

/// The keys of the archive, of Debian's package `debian-archive-keyring`.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An apt of its own for some suites.
pub struct Suites {
    options: Vec<String>,
    stamp: PathBuf,
    log: PathBuf,
}

impl Suites {
    /// Prepares an apt for `suites` of an architecture in the cache, with package lists that are new enough.
    pub fn open(
        cache: &Cache,
        mirrors: &Mirrors,
        suites: &[&str],
        architecture: Architecture,
    ) -> Result<Self> {
        let mut name = suites.join("+");
        if architecture != Architecture::HOST {
            name += &format!("-{}", architecture.name());
        }
        let dir = cache.dir(&format!("apt/{name}"))?;
        for sub in ["state/lists/partial", "cache/archives/partial", "etc/preferences.d"] {
            fs::create_dir_all(dir.join(sub)).with_context(|| format!("create {}/{sub}", dir.display()))?;
        }
        let sources: String = suites.iter().map(|suite| mirrors.source(suite) + "\n").collect();
        fs::write(dir.join("state/status"), "").context("write an empty package status")?;
        fs::write(dir.join("etc/sources.list"), sources).context("write a sources list")?;
        let at = |sub: &str| dir.join(sub).display().to_string();
        let options = [
            format!("Dir::State={}", at("state")),
            format!("Dir::State::status={}", at("state/status")),
            format!("Dir::Cache={}", at("cache")),
            format!("Dir::Etc::sourcelist={}", at("etc/sources.list")),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::Etc::preferencesparts={}", at("etc/preferences.d")),
            format!("APT::Architecture={}", architecture.name()),
            format!("APT::Architectures::={}", architecture.name()),
            // Suites that are no longer updated have lists whose date of expiry is past.
            "Acquire::Check-Valid-Until=false".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
            "APT::Update::Error-Mode=any".to_owned(),
            // The cache may be in a directory that only we can read.
            "APT::Sandbox::User=root".to_owned(),
        ];
        let this = Self {
            options: options.into_iter().flat_map(|option| ["-o".to_owned(), option]).collect(),
            stamp: dir.join("updated"),
            log: cache.log(&format!("apt {name}"))?,
        };
        this.update().with_context(|| {
            format!(
                "apt cannot fetch the package lists of {name}: check the network and this machine's mirror"
            )
        })?;
        Ok(this)
    }

    fn update(&self) -> Result<()> {
        let age =
            fs::metadata(&self.stamp).and_then(|m| m.modified()).ok().and_then(|time| time.elapsed().ok());
        if age.is_some_and(|age| age < LIST_AGE) {
            return Ok(());
        }
        run::logged(Command::new("apt-get").args(&self.options).args(["-q", "update"]), &self.log)?;
        fs::write(&self.stamp, "").with_context(|| format!("write {}", self.stamp.display()))
    }

    pub fn search(&self, regex: &str) -> Result<Vec<String>> {
        let text = run::output(Command::new("apt-cache").args(&self.options).args([
            "search",
            "--names-only",
            regex,
        ]))?;
        Ok(text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect())
    }

    /// Fetches packages and unpacks them into `into`; none of their scripts run.
    pub fn unpack(&self, packages: &[String], into: &Path) -> Result<()> {
        let debs =
            tempfile::tempdir_in(into.parent().unwrap_or(into)).context("make a temporary directory")?;
        run::logged(
            Command::new("apt-get")
                .args(&self.options)
                .args(["-q", "download"])
                .args(packages)
                .current_dir(debs.path()),
            &self.log,
        )
        .with_context(|| format!("apt cannot fetch {}: check the network", packages.join(" ")))?;
        for entry in fs::read_dir(debs.path()).context("list the fetched packages")? {
            let deb = entry.context("list the fetched packages")?.path();
            run::logged(Command::new("dpkg-deb").arg("--extract").arg(&deb).arg(into), &self.log)
                .with_context(|| format!("unpack {}", deb.display()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGETS: &str = "http://m/debian/ bookworm\nhttp://m/debian/ bookworm-updates\n\
                           http://m/debian-security/ bookworm-security\nhttp://other/ tools\n";

    #[test]
    fn mirrors_are_distinguished_by_suite() {
        let mirrors = Mirrors::parse(TARGETS, "bookworm").unwrap();
        let source = mirrors.source("bullseye");
        assert!(source.ends_with(" http://m/debian/ bullseye main"), "{source}");
        let source = mirrors.source("bullseye-security");
        assert!(source.ends_with(" http://m/debian-security/ bullseye-security main"), "{source}");
    }

    #[test]
    fn a_machine_without_its_suites_learns_what_is_missing() {
        let error = Mirrors::parse(TARGETS, "trixie").map(drop).unwrap_err();
        assert!(error.to_string().contains("trixie-security"), "{error}");
    }
}
