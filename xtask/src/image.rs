//! The `image` task: the container image of `kwitness`, for each architecture, from one machine and without a container runtime.
//!
//! | In `target/xtask/image` | What |
//! |---|---|
//! | `kwitness-VERSION` | OCI layout: an index of all architectures, with an SBOM that refers to each image |
//! | `kwitness-VERSION-linux-ARCH.tar` | one architecture, for `ctr images import`, `docker load`, `podman load` |
//!
//! The image has one layer: the [released](release) program and its licences. The same sources, toolchain and C library give the same
//! digest.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::json;
use tar::Builder;

use crate::architecture::Architecture;
use crate::oci::{self, Blob, Configuration, Layout};
use crate::release::{self, Source};
use crate::workspace::Workspace;
use crate::{ebpf, sbom};

/// How large an image may be, as it is transferred.
const LARGEST: u64 = 12_000_000;
/// The name without a registry.
pub const NAME: &str = "kwitness";
const PROGRAM: &str = "usr/bin/kwitness";
/// What its licences demand to be with it.
pub const LICENCES: &[&str] = &["LICENSE-APACHE", "LICENSE-MIT"];

/// What to make.
#[derive(Args)]
pub struct Image {
    /// Only these architectures
    #[arg(long, value_enum, value_name = "ARCH")]
    arch: Vec<Architecture>,
}

pub fn task(workspace: &Workspace, image: &Image) -> Result<()> {
    // What is shipped is what the manifest of the probes names.
    ebpf::check(workspace)?;
    let source = Source::find(workspace)?;
    let version = env!("CARGO_PKG_VERSION");
    let to = workspace.scratch("image")?;
    let name = format!("{NAME}-{version}");
    let mut layout = Layout::new(&to.join(&name))?;
    let mut images = Vec::new();
    let all = Architecture::value_variants();
    for architecture in all.iter().copied().filter(|one| image.arch.is_empty() || image.arch.contains(one)) {
        let program = release::kwitness(workspace, architecture, &source)?;
        let bytes = fs::read(&program).with_context(|| format!("read {}", program.display()))?;
        let layer = layer(&workspace.root, &bytes)?;
        let (added, size) = add(&mut layout, &layer, architecture, Some(&source))?;
        ensure!(
            size <= LARGEST,
            "the image for {} has {size} bytes, more than {LARGEST}",
            architecture.name()
        );
        let document = sbom::document(workspace, architecture, &source.created, &bytes)?;
        layout.referrer(&added, sbom::MEDIA_TYPE, &document)?;
        images.push(added);
        let archive = to.join(format!("{name}-linux-{}.tar", architecture.name()));
        write_archive(&layer, architecture, Some(&source), &archive)?;
        println!("{}  {:.1} MB", archive.display(), size as f64 / 1e6);
    }
    let index = layout.index(&images)?;
    layout.name(&index, version);
    layout.finish()?;
    println!("{}  {}", to.join(&name).display(), index.digest());
    Ok(())
}

/// An archive with the image of a static program for this machine's architecture: of the one that is under test, whose sources need not
/// be committed.
pub fn of_program(workspace: &Workspace, program: &Path, archive: &Path) -> Result<()> {
    let bytes = fs::read(program).with_context(|| format!("read {}", program.display()))?;
    write_archive(&layer(&workspace.root, &bytes)?, Architecture::Amd64, None, archive)
}

/// The tar of the root: the program and its licences.
fn layer(root: &Path, program: &[u8]) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    for name in ["usr", "usr/bin", "usr/share", "usr/share/doc", "usr/share/doc/kwitness"] {
        oci::add_directory(&mut tar, name, 0o755)?;
    }
    oci::add_file(&mut tar, PROGRAM, program, 0o755)?;
    for name in LICENCES {
        let text = fs::read(root.join(name)).with_context(|| format!("read {name}"))?;
        oci::add_file(&mut tar, &format!("usr/share/doc/kwitness/{name}"), &text, 0o644)?;
    }
    Ok(tar.into_inner()?)
}

/// Adds an image with that layer; also its bytes, as they are transferred.
fn add(
    layout: &mut Layout,
    layer: &[u8],
    architecture: Architecture,
    source: Option<&Source>,
) -> Result<(Blob, u64)> {
    let layer = layout.compressed_layer(layer)?;
    let mut labels = json!({
        "org.opencontainers.image.title": NAME,
        "org.opencontainers.image.description": "Reports what the kernel really did to a node's containers",
        "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
        "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
    });
    if let Some(Source { revision, created, .. }) = source {
        labels["org.opencontainers.image.revision"] = json!(revision);
        labels["org.opencontainers.image.created"] = json!(created);
    }
    let config = json!({
        "Entrypoint": [format!("/{PROGRAM}")],
        "Cmd": ["daemon"],
        "Env": ["PATH=/usr/bin"],
        "Labels": labels,
    });
    let created = source.map(|source| source.created.as_str());
    let configuration = Configuration { architecture: architecture.name(), created, config };
    Ok((layout.image(&[&layer], &configuration)?, layer.size()))
}

fn write_archive(
    layer: &[u8],
    architecture: Architecture,
    source: Option<&Source>,
    archive: &Path,
) -> Result<()> {
    oci::archive(archive, |layout| {
        let (image, _) = add(layout, layer, architecture, source)?;
        // What a runtime makes of a name without a registry.
        layout.tag(&image, &format!("docker.io/library/{NAME}:{}", env!("CARGO_PKG_VERSION")));
        Ok(())
    })
}
