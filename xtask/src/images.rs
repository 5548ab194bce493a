//! The container images of tests and demo, made here: no registry is used.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::json;
use tar::{Builder, EntryType};

use crate::architecture::Architecture;
use crate::oci::{self, Configuration, add_directory, add_file, header};
use crate::run;
use crate::setup::programs::{self, BUSYBOX};
use crate::versions::RootSpec;
use crate::workspace::Cache;

const DIRECTORIES: &[&str] = &["bin", "dev", "etc", "proc", "sys"];

/// Busybox, and the names of its applets.
pub fn busybox() -> Result<(Vec<u8>, Vec<String>)> {
    let program = fs::read(BUSYBOX).with_context(|| format!("read {BUSYBOX}"))?;
    let applets = run::output(Command::new(BUSYBOX).arg("--list"))?;
    let applets = applets.lines().filter(|applet| *applet != "busybox").map(str::to_owned);
    Ok((program, applets.collect()))
}

/// Writes the archive for nodes with that root: a pause image under the name that containerd is configured with, and busybox as `bb:1`.
pub fn write(cache: &Cache, root: &RootSpec, archive: &Path) -> Result<()> {
    let architecture = root.architecture();
    let (mut busybox, applets) = busybox()?;
    if architecture != Architecture::HOST {
        let own = root.tree(cache)?.join("usr/bin/busybox");
        busybox = fs::read(&own).with_context(|| format!("read {}", own.display()))?;
    }
    let pause = layer(&[("pause", &programs::read(cache, architecture, "pause")?)], &[])?;
    let busybox = layer(&[("bin/busybox", &busybox)], &applets)?;
    oci::archive(archive, |layout| {
        for (name, entry, layer) in
            [("registry.k8s.io/pause:3.10", "/pause", pause), ("docker.io/library/bb:1", "/bin/sh", busybox)]
        {
            let layer = layout.layer(&layer)?;
            let config = json!({ "Entrypoint": [entry], "Env": ["PATH=/bin"] });
            let image = layout.image(
                &[&layer],
                &Configuration { architecture: architecture.name(), created: None, config },
            )?;
            layout.tag(&image, name);
        }
        Ok(())
    })
}

/// The tar of a root with some programs, and links to busybox in `/bin`.
fn layer(programs: &[(&str, &[u8])], applets: &[String]) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    DIRECTORIES.iter().try_for_each(|name| add_directory(&mut tar, name, 0o755))?;
    add_directory(&mut tar, "tmp", 0o1777)?;
    for (name, bytes) in programs {
        add_file(&mut tar, name, bytes, 0o755)?;
    }
    for applet in applets {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    Ok(tar.into_inner()?)
}
