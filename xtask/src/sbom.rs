//! What a released program consists of, in SPDX 2.3: the crates that cargo links into it, Rust's standard library and the C library.
//!
//! Made of cargo's metadata and `Cargo.lock`. The same sources give the same document: its time is the commit's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::architecture::Architecture;
use crate::run;
use crate::step::hex;
use crate::workspace::Workspace;
use sha2::{Digest as _, Sha256};

pub const MEDIA_TYPE: &str = "application/spdx+json";
const ROOT: &str = "kwitness";

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    /// None: it is of this workspace.
    source: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Deserialize)]
struct Kind {
    /// None: linked. Else `build` or `dev`.
    kind: Option<String>,
}

#[derive(Deserialize)]
struct Lock {
    package: Vec<Locked>,
}

#[derive(Deserialize)]
struct Locked {
    name: String,
    version: String,
    checksum: Option<String>,
}

pub fn document(
    workspace: &Workspace,
    architecture: Architecture,
    created: &str,
    program: &[u8],
) -> Result<Vec<u8>> {
    let mut cargo = run::cargo();
    cargo.args(["metadata", "--format-version=1", "--locked", "--filter-platform", architecture.target()]);
    let metadata: Metadata = serde_json::from_str(&run::output(cargo.current_dir(&workspace.root))?)
        .context("read `cargo metadata`")?;
    let lock = fs::read_to_string(workspace.root.join("Cargo.lock")).context("read Cargo.lock")?;
    let lock: Lock = toml::from_str(&lock).context("parse Cargo.lock")?;
    let rustc = run::output(Command::new("rustc").arg("--version").current_dir(&workspace.root))?;
    let rustc = rustc.split(' ').nth(1).context("read `rustc --version`")?;
    let libc = architecture.libc_package();
    let libc = run::output(Command::new("dpkg-query").args(["--show", "--showformat=${Version}", libc]))?;
    let libraries = [("rust-std", rustc, "MIT OR Apache-2.0"), ("glibc", &*libc, "LGPL-2.1-or-later")];
    let document = write(&metadata, &lock, libraries, architecture.name(), created, program)?;
    serde_json::to_vec(&document).context("write the SBOM")
}

fn write(
    metadata: &Metadata,
    lock: &Lock,
    libraries: [(&str, &str, &str); 2],
    architecture: &str,
    created: &str,
    program: &[u8],
) -> Result<Value> {
    let packages: BTreeMap<_, _> = metadata.packages.iter().map(|one| (one.id.as_str(), one)).collect();
    let nodes: BTreeMap<_, _> = metadata.resolve.nodes.iter().map(|one| (one.id.as_str(), one)).collect();
    let checksums: BTreeMap<_, _> =
        lock.package.iter().map(|one| ((&*one.name, &*one.version), one.checksum.as_deref())).collect();
    let root = metadata.packages.iter().find(|one| one.name == ROOT && one.source.is_none());
    let root = root.context("cargo knows no package kwitness")?;

    let mut entries = BTreeMap::new();
    let mut relations = BTreeSet::new();
    let mut todo = vec![root.id.as_str()];
    while let Some(id) = todo.pop() {
        let package = packages.get(id).with_context(|| format!("cargo knows no package {id}"))?;
        let key = (package.name.as_str(), package.version.as_str());
        let name = spdx_id(key);
        if entries.contains_key(&name) {
            continue;
        }
        let checksum = checksums.get(&key).copied().flatten();
        entries.insert(name.clone(), entry(key, package.license.as_deref(), checksum));
        for dependency in nodes.get(id).into_iter().flat_map(|node| &node.deps) {
            if !dependency.dep_kinds.iter().any(|kind| kind.kind.is_none()) {
                continue;
            }
            let other = packages.get(dependency.pkg.as_str()).context("an unknown dependency")?;
            relations.insert((name.clone(), spdx_id((&other.name, &other.version))));
            todo.push(&dependency.pkg);
        }
    }
    let root = spdx_id((&root.name, &root.version));
    for (name, version, licence) in libraries {
        let id = spdx_id((name, version));
        entries.insert(id.clone(), entry((name, version), Some(licence), None));
        relations.insert((root.clone(), id));
    }
    let depends = relations.iter().map(|(from, to)| {
        json!({ "spdxElementId": from, "relationshipType": "DEPENDS_ON", "relatedSpdxElement": to })
    });
    let describes = json!({
        "spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": root,
    });
    let relationships: Vec<_> = [describes].into_iter().chain(depends).collect();
    let hash = hex(&Sha256::digest(program));
    Ok(json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": format!("{ROOT}-linux-{architecture}"),
        "documentNamespace": format!("urn:kwitness:sbom:{hash}"),
        "creationInfo": { "created": created, "creators": [concat!("Tool: kwitness-xtask-", env!("CARGO_PKG_VERSION"))] },
        "packages": entries.into_values().collect::<Vec<_>>(),
        "relationships": relationships,
    }))
}

fn entry((name, version): (&str, &str), licence: Option<&str>, checksum: Option<&str>) -> Value {
    let mut entry = json!({
        "SPDXID": spdx_id((name, version)),
        "name": name,
        "versionInfo": version,
        // Some crates still separate licences by a slash.
        "licenseDeclared": licence.map_or("NOASSERTION".to_owned(), |text| text.replace('/', " OR ")),
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
    });
    if let Some(checksum) = checksum {
        entry["checksums"] = json!([{ "algorithm": "SHA256", "checksumValue": checksum }]);
        entry["externalRefs"] = json!([{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": format!("pkg:cargo/{name}@{version}"),
        }]);
    }
    entry
}

/// Letters, digits, dots and dashes are what SPDX allows.
fn spdx_id((name, version): (&str, &str)) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    format!("SPDXRef-{name}-{version}").chars().map(allowed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_linked_is_listed_and_what_only_builds_is_not() {
        let package = |name: &str, source: Option<&str>| json!({ "id": name, "name": name, "version": "1.0.0+a_b", "license": "MIT/Apache-2.0", "source": source });
        let dependency =
            |name: &str, kind: Option<&str>| json!({ "pkg": name, "dep_kinds": [{ "kind": kind }] });
        let metadata = json!({
            "packages": [package(ROOT, None), package("linked", Some("r")), package("deeper", Some("r")), package("builds", Some("r"))],
            "resolve": { "nodes": [
                { "id": ROOT, "deps": [dependency("linked", None), dependency("builds", Some("build"))] },
                { "id": "linked", "deps": [dependency("deeper", None)] },
                { "id": "deeper", "deps": [] },
                { "id": "builds", "deps": [] },
            ] },
        });
        let lock = "[[package]]\nname = \"linked\"\nversion = \"1.0.0+a_b\"\nchecksum = \"abc\"\n";
        let document = write(
            &serde_json::from_value(metadata).unwrap(),
            &toml::from_str(lock).unwrap(),
            [("rust-std", "1", "MIT"), ("glibc", "2", "LGPL-2.1-or-later")],
            "amd64",
            "2026-01-02T03:04:05Z",
            b"program",
        )
        .unwrap();
        let packages = document["packages"].as_array().unwrap();
        let names: Vec<_> = packages.iter().map(|one| one["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["deeper", "glibc", "kwitness", "linked", "rust-std"]);
        assert_eq!(packages[3]["SPDXID"], "SPDXRef-linked-1.0.0-a-b");
        assert_eq!(packages[3]["licenseDeclared"], "MIT OR Apache-2.0");
        assert_eq!(packages[3]["checksums"][0]["checksumValue"], "abc");
        let relations = document["relationships"].as_array().unwrap();
        assert_eq!(relations.len(), 1 + 2 + 2);
        assert!(relations.iter().any(|one| one["relatedSpdxElement"] == "SPDXRef-deeper-1.0.0-a-b"));
    }
}
