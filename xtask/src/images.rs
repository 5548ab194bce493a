//! The container images of tests and demo, made here: no registry is used.
//!
//! Written as a docker-archive: a layer and a configuration for each image, both named by their hash, and a manifest.

use std::io::Write;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType};

use crate::oci::{add_file, header};
use crate::run;
use crate::setup::programs;
use crate::step::hex;
use crate::workspace::Cache;

/// The host's static busybox, of Debian's package `busybox-static`.
pub const BUSYBOX: &str = "/bin/busybox";
const DIRECTORIES: &[(&str, u32)] =
    &[("bin", 0o755), ("dev", 0o755), ("etc", 0o755), ("proc", 0o755), ("sys", 0o755), ("tmp", 0o1777)];

struct Image {
    tag: &'static str,
    entry: &'static str,
    layer: Vec<u8>,
}

/// Writes the archive: a pause image under the name that containerd is configured with, and busybox as `bb:1`.
pub fn write(cache: &Cache, archive: &Path) -> Result<()> {
    let busybox = std::fs::read(BUSYBOX).with_context(|| format!("read {BUSYBOX}"))?;
    let applets = run::output(std::process::Command::new(BUSYBOX).arg("--list"))?;
    let applets: Vec<_> = applets.lines().filter(|applet| *applet != "busybox").collect();
    let images = [
        Image {
            tag: "registry.k8s.io/pause:3.10",
            entry: "/pause",
            layer: layer(&[("pause", &programs::read(cache, "pause")?)], &[])?,
        },
        Image {
            tag: "docker.io/library/bb:1",
            entry: "/bin/sh",
            layer: layer(&[("bin/busybox", &busybox)], &applets)?,
        },
    ];
    let file = std::fs::File::create(archive).with_context(|| format!("create {}", archive.display()))?;
    pack(&images, file).with_context(|| format!("write {}", archive.display()))
}

fn pack(images: &[Image], to: impl Write) -> Result<()> {
    let mut archive = Builder::new(to);
    let mut manifest = Vec::new();
    for image in images {
        let digest = hex(&Sha256::digest(&image.layer));
        let configuration = serde_json::to_vec(&json!({
            "architecture": "amd64",
            "os": "linux",
            "config": { "Entrypoint": [image.entry], "Env": ["PATH=/bin"] },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{digest}")] },
            "history": [{ "created_by": "xtask" }],
        }))?;
        let configuration_name = format!("{}.json", hex(&Sha256::digest(&configuration)));
        let layer_name = format!("{digest}/layer.tar");
        add_file(&mut archive, &configuration_name, &configuration, 0o644)?;
        add_file(&mut archive, &layer_name, &image.layer, 0o644)?;
        manifest
            .push(json!({ "Config": configuration_name, "RepoTags": [image.tag], "Layers": [layer_name] }));
    }
    add_file(&mut archive, "manifest.json", &serde_json::to_vec(&manifest)?, 0o644)?;
    archive.into_inner().and_then(|mut to| to.flush()).context("end the archive")
}

/// The tar of a root with some programs, and links to busybox in `/bin`.
fn layer(programs: &[(&str, &[u8])], applets: &[&str]) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for (name, mode) in DIRECTORIES {
        let mut header = header(EntryType::Directory, *mode, 0);
        tar.append_data(&mut header, format!("{name}/"), std::io::empty())?;
    }
    for (name, bytes) in programs {
        add_file(&mut tar, name, bytes, 0o755)?;
    }
    for applet in applets {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        tar.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    Ok(tar.into_inner()?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use super::*;

    fn entries(bytes: &[u8]) -> BTreeMap<String, (EntryType, u32, Vec<u8>)> {
        let mut archive = tar::Archive::new(bytes);
        let entries = archive.entries().unwrap().map(|entry| {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            let header = entry.header();
            let link =
                entry.link_name().unwrap().map(|link| link.to_string_lossy().into_owned().into_bytes());
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            (name, (header.entry_type(), header.mode().unwrap(), link.unwrap_or(content)))
        });
        entries.collect()
    }

    #[test]
    fn a_layer_has_its_programs_and_links() {
        let layer = layer(&[("bin/busybox", b"program")], &["sh", "cat"]).unwrap();
        let entries = entries(&layer);
        assert_eq!(entries["bin/busybox"], (EntryType::Regular, 0o755, b"program".to_vec()));
        assert_eq!(entries["bin/sh"], (EntryType::Symlink, 0o777, b"busybox".to_vec()));
        assert_eq!(entries["tmp/"], (EntryType::Directory, 0o1777, Vec::new()));
        assert_eq!(entries.len(), DIRECTORIES.len() + 3);
    }

    #[test]
    fn the_manifest_names_what_is_there_by_its_hash() {
        let layer = layer(&[("pause", b"program")], &[]).unwrap();
        let image = Image { tag: "example/pause:1", entry: "/pause", layer: layer.clone() };
        let mut archive = Vec::new();
        pack(&[image], &mut archive).unwrap();
        let entries = entries(&archive);
        let manifest: serde_json::Value = serde_json::from_slice(&entries["manifest.json"].2).unwrap();
        assert_eq!(manifest[0]["RepoTags"][0], "example/pause:1");
        let layer_name = manifest[0]["Layers"][0].as_str().unwrap();
        assert_eq!(entries[layer_name].2, layer);
        let configuration = &entries[manifest[0]["Config"].as_str().unwrap()].2;
        assert_eq!(manifest[0]["Config"], format!("{}.json", hex(&Sha256::digest(configuration))));
        let configuration: serde_json::Value = serde_json::from_slice(configuration).unwrap();
        assert_eq!(configuration["config"]["Entrypoint"][0], "/pause");
        assert_eq!(
            configuration["rootfs"]["diff_ids"][0],
            format!("sha256:{}", hex(&Sha256::digest(&layer)))
        );
    }
}
