//! helm and kubeconform, built from their Go modules, and what kubeconform validates by: the API types of [`KUBERNETES`], out of the
//! Go module that the API server is built from.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::go;
use crate::run;
use crate::step::Step;
use crate::versions::{HELM, KUBERNETES};
use crate::workspace::Cache;

/// It shares no cache with Kubernetes' own build, but is small enough to keep.
const MODULE: go::Module = go::Module { keeps: true, ..go::module!("helm") };
/// The programs' names that a job has, in the cache's tools.
pub const NAMES: [&str; 1] = ["helm"];
/// The file of all types; those of the kinds refer to it.
const DEFINITIONS: &str = "definitions.json";

pub fn ensure(cache: &Cache) -> Result<()> {
    let inputs: Vec<_> = [HELM].into_iter().chain(MODULE.texts()).collect();
    let flags = format!("-s -w -X helm.sh/helm/v4/internal/version.version=v{HELM}");
    let programs = [
        (go::BUILD, "helm.sh/helm/v4/cmd/helm", flags.as_str()),
        (go::BUILD, "github.com/yannh/kubeconform/cmd/kubeconform", "-s -w"),
    ];
    MODULE.ensure(cache, &format!("helm {HELM}"), &inputs, &programs)?;
    let schemas = schemas(cache)?;
    let name = format!("schemas of Kubernetes {KUBERNETES}");
    Step { name: &name, inputs: &[KUBERNETES, "1"], outputs: &[&schemas.join(DEFINITIONS)] }
        .run(cache, || write_schemas(&openapi(cache)?, &schemas))
}

pub fn schemas(cache: &Cache) -> Result<PathBuf> {
    cache.dir(&format!("schemas/{KUBERNETES}"))
}

/// The API in OpenAPI 2, which is in the module's source.
fn openapi(cache: &Cache) -> Result<Value> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Module {
        dir: PathBuf,
    }
    // In a directory without a module, so that none is changed.
    let directory = cache.dir("build/openapi")?;
    let module = format!("k8s.io/kubernetes@v{KUBERNETES}");
    let mut download = Command::new("go");
    download.args(["mod", "download", "-json", &module]).current_dir(directory);
    let module: Module = serde_json::from_str(&run::output(&mut download)?).context("read Go's answer")?;
    let path = module.dir.join("api/openapi-spec/swagger.json");
    let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))
}

fn write_schemas(openapi: &Value, to: &Path) -> Result<()> {
    let (definitions, kinds) = strict(openapi);
    let write = |name: &str, value: &Value| {
        let path = to.join(name);
        fs::write(&path, value.to_string()).with_context(|| format!("write {}", path.display()))
    };
    for (file, definition) in &kinds {
        write(file, &json!({ "$ref": format!("{DEFINITIONS}#/definitions/{definition}") }))?;
    }
    write(DEFINITIONS, &json!({ "definitions": definitions }))
}

/// The types as JSON Schema that refuses unknown fields, and the type of each kind by its file: `daemonset-apps-v1.json`.
fn strict(openapi: &Value) -> (Value, BTreeMap<String, String>) {
    let mut definitions = openapi["definitions"].clone();
    let mut kinds = BTreeMap::new();
    for (name, definition) in definitions.as_object_mut().into_iter().flatten() {
        if definition["properties"].is_object() {
            definition["additionalProperties"] = json!(false);
        }
        // What OpenAPI 2 has no words for.
        match definition["format"].as_str() {
            Some("int-or-string") => definition["type"] = json!(["integer", "string"]),
            _ if name.ends_with(".Quantity") => definition["type"] = json!(["number", "string"]),
            _ => {}
        }
        for kind in definition["x-kubernetes-group-version-kind"].as_array().into_iter().flatten() {
            let field = |name: &str| kind[name].as_str().unwrap_or_default().to_lowercase();
            let group = field("group");
            // As kubeconform names it: the first label of the group.
            let group = group.split('.').next().filter(|group| !group.is_empty());
            let parts = [Some(field("kind")), group.map(str::to_owned), Some(field("version"))];
            let parts: Vec<_> = parts.into_iter().flatten().collect();
            kinds.insert(format!("{}.json", parts.join("-")), name.clone());
        }
    }
    (definitions, kinds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_refuse_unknown_fields_and_have_a_file_for_each_kind() {
        let (definitions, kinds) = strict(&json!({ "definitions": {
            "io.k8s.api.apps.v1.DaemonSet": {
                "type": "object",
                "properties": { "spec": {} },
                "x-kubernetes-group-version-kind": [{ "group": "apps", "version": "v1", "kind": "DaemonSet" }],
            },
            "io.k8s.api.core.v1.Pod": {
                "type": "object",
                "properties": { "spec": {} },
                "x-kubernetes-group-version-kind": [{ "group": "", "version": "v1", "kind": "Pod" }],
            },
            "io.k8s.apimachinery.pkg.api.resource.Quantity": { "type": "string" },
            "io.k8s.apimachinery.pkg.util.intstr.IntOrString": { "format": "int-or-string", "type": "string" },
        } }));
        assert_eq!(definitions["io.k8s.api.apps.v1.DaemonSet"]["additionalProperties"], false);
        let kind = |name: &str| &definitions[format!("io.k8s.apimachinery.pkg.{name}")]["type"];
        assert_eq!(kind("api.resource.Quantity"), &json!(["number", "string"]));
        assert_eq!(kind("util.intstr.IntOrString"), &json!(["integer", "string"]));
        let names: Vec<_> = kinds.iter().map(|(file, name)| (file.as_str(), name.as_str())).collect();
        assert_eq!(
            names,
            [
                ("daemonset-apps-v1.json", "io.k8s.api.apps.v1.DaemonSet"),
                ("pod-v1.json", "io.k8s.api.core.v1.Pod")
            ]
        );
    }

    #[test]
    fn what_is_built_is_what_the_module_pins() {
        assert!(MODULE.texts().any(|text| text.contains(&format!("helm.sh/helm/v4 v{HELM}\n"))));
    }
}
