//! Writes OCI image layouts and the tar archives in them. The same input gives the same bytes: entries have no times and no owners,
//! blobs are named by their hash, and nothing comes from the machine.
//!
//! Owns the formats (OCI image specification 1.1, and the manifest of a docker-archive). Never decides what is in an image.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use crate::step::hex;

/// The annotation by which a layout names its images.
const NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation by which containerd names the images of a layout: it takes this one as it is.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

pub struct Layout {
    directory: PathBuf,
    manifests: Vec<Value>,
}

/// What other content says of a blob: its type, digest and size.
#[derive(Clone)]
pub struct Blob(Value);

/// A layer: its blob, and the digest of the tar in it.
pub struct Layer {
    blob: Blob,
    diff_id: String,
}

/// What an image's configuration says beside its layers.
pub struct Configuration<'a> {
    pub architecture: &'a str,
    /// In RFC 3339; none: not stated.
    pub created: Option<&'a str>,
    /// Entry point, environment, user, labels.
    pub config: Value,
}

impl Blob {
    pub fn digest(&self) -> &str {
        self.0["digest"].as_str().unwrap_or_default()
    }

    pub fn size(&self) -> u64 {
        self.0["size"].as_u64().unwrap_or_default()
    }

    fn field(&self, name: &str, value: Value) -> Self {
        let mut descriptor = self.0.clone();
        descriptor[name] = value;
        Self(descriptor)
    }
}

impl Layer {
    /// Its bytes, as they are transferred.
    pub fn size(&self) -> u64 {
        self.blob.size()
    }
}

impl Layout {
    /// An empty layout in `directory`; what was there before is removed.
    pub fn new(directory: &Path) -> Result<Self> {
        if directory.exists() {
            fs::remove_dir_all(directory).with_context(|| format!("remove {}", directory.display()))?;
        }
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("create {}", blobs.display()))?;
        Ok(Self { directory: directory.to_owned(), manifests: Vec::new() })
    }

    pub fn layer(&mut self, tar: &[u8]) -> Result<Layer> {
        let blob = self.blob("application/vnd.oci.image.layer.v1.tar", tar)?;
        Ok(Layer { diff_id: blob.digest().to_owned(), blob })
    }

    pub fn compressed_layer(&mut self, tar: &[u8]) -> Result<Layer> {
        // Without a name and a time in its header.
        let mut gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
        let bytes = gzip.write_all(tar).and_then(|()| gzip.finish()).context("compress the layer")?;
        let blob = self.blob("application/vnd.oci.image.layer.v1.tar+gzip", &bytes)?;
        Ok(Layer { blob, diff_id: digest(tar) })
    }

    /// Adds an image; [`Self::name`] or [`Self::index`] makes it reachable.
    pub fn image(&mut self, layers: &[&Layer], configuration: &Configuration<'_>) -> Result<Blob> {
        let Configuration { architecture, created, config } = configuration;
        let diff_ids: Vec<_> = layers.iter().map(|layer| &layer.diff_id).collect();
        let history: Vec<_> = layers.iter().map(|_| json!({ "created_by": "xtask" })).collect();
        let mut image = json!({
            "architecture": architecture,
            "os": "linux",
            "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": history,
        });
        if let Some(created) = created {
            image["created"] = json!(created);
        }
        let image = self.json("application/vnd.oci.image.config.v1+json", &image)?;
        let layers: Vec<_> = layers.iter().map(|layer| &layer.blob.0).collect();
        let manifest = self.manifest(json!({ "config": image.0, "layers": layers }))?;
        Ok(manifest.field("platform", json!({ "architecture": architecture, "os": "linux" })))
    }

    /// Adds a document about an image as an artifact that refers to it.
    pub fn referrer(&mut self, subject: &Blob, kind: &str, document: &[u8]) -> Result<()> {
        let empty = self.blob("application/vnd.oci.empty.v1+json", b"{}")?;
        let document = self.blob(kind, document)?;
        let subject = json!({
            "mediaType": subject.0["mediaType"], "digest": subject.0["digest"], "size": subject.0["size"],
        });
        let artifact = json!({
            "artifactType": kind, "config": empty.0, "layers": [document.0], "subject": subject,
        });
        let artifact = self.manifest(artifact)?.field("artifactType", json!(kind));
        self.manifests.push(artifact.0);
        Ok(())
    }

    /// Adds one name for the images of several platforms.
    pub fn index(&mut self, images: &[Blob]) -> Result<Blob> {
        let kind = "application/vnd.oci.image.index.v1+json";
        let manifests: Vec<_> = images.iter().map(|image| &image.0).collect();
        self.json(kind, &json!({ "schemaVersion": 2, "mediaType": kind, "manifests": manifests }))
    }

    pub fn name(&mut self, blob: &Blob, name: &str) {
        self.manifests.push(blob.field("annotations", json!({ NAME: name })).0);
    }

    /// Names an image as containerd stores it, with its tag alone as the layout's own name.
    pub fn tag(&mut self, blob: &Blob, name: &str) {
        let tag = name.rsplit(':').next().unwrap_or(name);
        self.manifests.push(blob.field("annotations", json!({ NAME: tag, CONTAINERD_NAME: name })).0);
    }

    pub fn finish(self) -> Result<()> {
        let index = json!({ "schemaVersion": 2, "manifests": self.manifests });
        let version = json!({ "imageLayoutVersion": "1.0.0" });
        for (name, content) in [("index.json", index), ("oci-layout", version)] {
            let path = self.directory.join(name);
            fs::write(&path, serde_json::to_vec(&content)?)
                .with_context(|| format!("write {}", path.display()))?;
        }
        Ok(())
    }

    fn manifest(&mut self, mut fields: Value) -> Result<Blob> {
        let kind = "application/vnd.oci.image.manifest.v1+json";
        fields["schemaVersion"] = json!(2);
        fields["mediaType"] = json!(kind);
        self.json(kind, &fields)
    }

    fn json(&mut self, kind: &str, value: &Value) -> Result<Blob> {
        self.blob(kind, &serde_json::to_vec(value)?)
    }

    fn blob(&mut self, kind: &str, bytes: &[u8]) -> Result<Blob> {
        let digest = digest(bytes);
        let path = self.directory.join("blobs").join(digest.replace(':', "/"));
        fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
        Ok(Blob(json!({ "mediaType": kind, "digest": digest, "size": bytes.len() })))
    }
}

/// Writes an archive of the images that `fill` adds and [tags](Layout::tag).
pub fn archive(archive: &Path, fill: impl FnOnce(&mut Layout) -> Result<()>) -> Result<()> {
    let directory = tempfile::tempdir().context("make a temporary directory")?;
    let directory = directory.path().join("layout");
    let mut layout = Layout::new(&directory)?;
    fill(&mut layout)?;
    layout.finish()?;
    let file = File::create(archive).with_context(|| format!("create {}", archive.display()))?;
    pack(&directory, file).with_context(|| format!("write {}", archive.display()))
}

/// Packs a layout into a tar, which is a docker-archive of its images, too: containerd and podman read the one, `docker load` without
/// containerd's image store reads the other.
fn pack(directory: &Path, to: impl Write) -> Result<()> {
    let read = |path: &str| {
        let path = directory.join(path);
        fs::read(&path).with_context(|| format!("read {}", path.display()))
    };
    let parsed = |path: &str| -> Result<Value> {
        serde_json::from_slice(&read(path)?).with_context(|| format!("parse {path}"))
    };
    let blob = |descriptor: &Value| {
        format!("blobs/{}", descriptor["digest"].as_str().unwrap_or_default().replace(':', "/"))
    };
    let index = parsed("index.json")?;
    let mut docker = Vec::new();
    for image in index["manifests"].as_array().into_iter().flatten() {
        let manifest = parsed(&blob(image))?;
        let layers: Vec<_> = manifest["layers"].as_array().into_iter().flatten().map(blob).collect();
        let name = image["annotations"][CONTAINERD_NAME].as_str().unwrap_or_default();
        // As docker itself names it.
        let name = name.strip_prefix("docker.io/library/").unwrap_or(name);
        docker.push(json!({ "Config": blob(&manifest["config"]), "RepoTags": [name], "Layers": layers }));
    }

    let mut archive = Builder::new(to);
    let mut names: Vec<_> = ["index.json", "oci-layout"].map(str::to_owned).to_vec();
    let blobs = directory.join("blobs/sha256");
    for entry in fs::read_dir(&blobs).with_context(|| format!("list {}", blobs.display()))? {
        names
            .push(format!("blobs/sha256/{}", entry.context("list the blobs")?.file_name().to_string_lossy()));
    }
    names.sort();
    for name in names {
        add_file(&mut archive, &name, &read(&name)?, 0o644)?;
    }
    add_file(&mut archive, "manifest.json", &serde_json::to_vec(&docker)?, 0o644)?;
    archive.into_inner().and_then(|mut to| to.flush()).context("end the archive")
}

pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// Adds a file with no other property than its mode.
pub fn add_file(tar: &mut Builder<impl Write>, name: &str, bytes: &[u8], mode: u32) -> Result<()> {
    let mut header = header(EntryType::Regular, mode, bytes.len() as u64);
    tar.append_data(&mut header, name, bytes).with_context(|| format!("pack {name}"))
}

/// Adds a directory, after those that it is in.
pub fn add_directory(tar: &mut Builder<impl Write>, name: &str, mode: u32) -> Result<()> {
    let mut header = header(EntryType::Directory, mode, 0);
    let added = tar.append_data(&mut header, format!("{name}/"), std::io::empty());
    added.with_context(|| format!("pack {name}"))
}

/// Of an entry that is the same every time.
pub fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const KIND: &str = "application/spdx+json";

    fn tar() -> Vec<u8> {
        let mut tar = Builder::new(Vec::new());
        ["usr", "usr/bin"].iter().for_each(|name| add_directory(&mut tar, name, 0o755).unwrap());
        add_file(&mut tar, "usr/bin/program", b"program", 0o755).unwrap();
        tar.into_inner().unwrap()
    }

    /// Two platforms with a document each.
    fn write(directory: &Path) {
        let mut layout = Layout::new(directory).unwrap();
        let images: Vec<_> = ["amd64", "arm64"]
            .map(|architecture| {
                let layer = layout.compressed_layer(&tar()).unwrap();
                let config = json!({ "Entrypoint": ["/usr/bin/program"] });
                let created = Some("2026-01-02T03:04:05Z");
                let image =
                    layout.image(&[&layer], &Configuration { architecture, created, config }).unwrap();
                layout.referrer(&image, KIND, architecture.as_bytes()).unwrap();
                image
            })
            .into();
        let index = layout.index(&images).unwrap();
        layout.name(&index, "1");
        layout.finish().unwrap();
    }

    fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut paths = Vec::new();
        crate::ebpf::list_files(directory, &mut paths).unwrap();
        let file = |path: PathBuf| {
            let bytes = fs::read(&path).unwrap();
            (path.strip_prefix(directory).unwrap().to_owned(), bytes)
        };
        paths.into_iter().map(file).collect()
    }

    #[test]
    fn the_same_input_gives_the_same_bytes_at_any_time_and_place() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(one.path());
        // An older one in its place leaves nothing.
        fs::create_dir_all(other.path().join("blobs/sha256")).unwrap();
        fs::write(other.path().join("blobs/sha256/old"), "old").unwrap();
        write(other.path());
        let files = (files(one.path()), files(other.path()));
        assert_eq!(files.0, files.1);
        // Whatever the clock, the user and the tar crate's defaults are: these bytes, on every machine.
        assert_eq!(digest(&tar()), "sha256:61ca788ff04259ad09bab11b9d886ea892cdac75763ccebd7fe20bf04bbf88a5");
    }

    #[test]
    fn every_blob_is_there_under_its_hash_and_reachable() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path());
        let read = |descriptor: &Value| {
            let path = descriptor["digest"].as_str().unwrap().replace(':', "/");
            let bytes = fs::read(dir.path().join("blobs").join(path)).unwrap();
            assert_eq!(digest(&bytes), descriptor["digest"].as_str().unwrap());
            assert_eq!(descriptor["size"].as_u64(), Some(bytes.len() as u64));
            bytes
        };
        let parse = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        let top = parse(&fs::read(dir.path().join("index.json")).unwrap());
        let top = top["manifests"].as_array().unwrap();
        let (index, referrers) = top.split_last().unwrap();
        assert_eq!(index["annotations"][NAME], "1");
        let images = parse(&read(index));
        for (image, referrer) in images["manifests"].as_array().unwrap().iter().zip(referrers) {
            let manifest = parse(&read(image));
            let config = parse(&read(&manifest["config"]));
            assert_eq!(config["architecture"], image["platform"]["architecture"]);
            let mut unpacked = Vec::new();
            let layer = read(&manifest["layers"][0]);
            std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&*layer), &mut unpacked).unwrap();
            assert_eq!(config["rootfs"]["diff_ids"][0], digest(&unpacked));
            assert_eq!(unpacked, tar());
            let artifact = parse(&read(referrer));
            assert_eq!((&artifact["artifactType"], &referrer["artifactType"]), (&json!(KIND), &json!(KIND)));
            assert_eq!(artifact["subject"]["digest"], image["digest"]);
            assert_eq!(read(&artifact["layers"][0]), config["architecture"].as_str().unwrap().as_bytes());
            read(&artifact["config"]);
        }
    }

    #[test]
    fn an_archive_is_a_layout_and_a_docker_archive() {
        let dir = tempfile::tempdir().unwrap();
        let mut layout = Layout::new(dir.path()).unwrap();
        let layer = layout.layer(&tar()).unwrap();
        let configuration = Configuration { architecture: "amd64", created: None, config: json!({}) };
        let image = layout.image(&[&layer], &configuration).unwrap();
        layout.tag(&image, "docker.io/library/program:1");
        layout.finish().unwrap();
        let mut archive = Vec::new();
        pack(dir.path(), &mut archive).unwrap();
        let mut entries = BTreeMap::new();
        for entry in tar::Archive::new(&*archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
            entries.insert(entry.path().unwrap().to_string_lossy().into_owned(), bytes);
        }
        let docker: Value = serde_json::from_slice(&entries["manifest.json"]).unwrap();
        assert_eq!(docker[0]["RepoTags"], json!(["program:1"]));
        assert_eq!(entries[docker[0]["Layers"][0].as_str().unwrap()], tar());
        assert!(entries.contains_key(docker[0]["Config"].as_str().unwrap()));
        let index: Value = serde_json::from_slice(&entries["index.json"]).unwrap();
        let names = &index["manifests"][0]["annotations"];
        assert_eq!(
            (&names[NAME], &names[CONTAINERD_NAME]),
            (&json!("1"), &json!("docker.io/library/program:1"))
        );
        assert_eq!(entries.len(), 6);
    }
}
