//! The manifest by which krew installs the kubectl plugin.

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::artifacts::PLUGIN;
use crate::release::Platform;

pub struct Archive {
    pub platform: Platform,
    pub name: String,
    pub sha256: String,
}

/// The manifest of a version whose archives are below `url`.
pub fn manifest(version: &str, url: &str, archives: &[Archive]) -> Result<String> {
    let url = url.trim_end_matches('/');
    let platforms: Vec<Value> = archives
        .iter()
        .map(|Archive { platform, name, sha256 }| {
            json!({
                "selector": { "matchLabels": { "os": platform.system, "arch": platform.architecture } },
                "uri": format!("{url}/{name}"),
                "sha256": sha256,
                "bin": platform.executable(PLUGIN),
            })
        })
        .collect();
    let manifest = json!({
        "apiVersion": "krew.googlecontainertools.github.com/v1alpha2",
        "kind": "Plugin",
        "metadata": { "name": "kwitness" },
        "spec": {
            "version": format!("v{version}"),
            "shortDescription": "What the kernel did to your containers",
            "description": "Container events, OOM kills and whose limit was hit, and whether CPU and memory\n\
                            limits are in effect, on all nodes in one table.\n",
            "caveats": "Needs the kwitness DaemonSet in the cluster, and in its namespace list and watch of pods, get\n\
                        and create of pods/portforward.\n",
            "platforms": platforms,
        },
    });
    serde_yaml_ng::to_string(&manifest).context("write krew's manifest")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::Architecture;
    use crate::release::WINDOWS;

    #[test]
    fn every_platform_has_its_archive_and_its_program() {
        let archives = [Platform::linux(Architecture::Arm64), WINDOWS].map(|platform| Archive {
            platform,
            name: format!("{}.tar.gz", platform.system),
            sha256: "ab".repeat(32),
        });
        let text = manifest("1.2.3", "https://example.org/v1.2.3/", &archives).unwrap();
        let manifest: Value = serde_yaml_ng::from_str(&text).unwrap();
        assert_eq!(manifest["spec"]["version"], "v1.2.3");
        let platforms = manifest["spec"]["platforms"].as_array().unwrap();
        assert_eq!(platforms[0]["uri"], "https://example.org/v1.2.3/linux.tar.gz");
        assert_eq!(platforms[0]["selector"]["matchLabels"]["arch"], "arm64");
        assert_eq!(platforms[0]["bin"], "kubectl-kwitness");
        assert_eq!(platforms[1]["bin"], "kubectl-kwitness.exe");
        assert_eq!(platforms[1]["sha256"].as_str().unwrap().len(), 64);
    }
}
