//! Generates the API's messages, their canonical JSON and the client from the files below `proto/`; no `protoc` is needed.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::Context as _;
use prost::Message as _;

const FILE: &str = "kwitness/v1alpha1/kwitness.proto";
const TIMESTAMP: (&str, &str) = (".google.protobuf.Timestamp", "crate::Timestamp");

fn main() -> anyhow::Result<()> {
    let proto = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo::rerun-if-changed={}", proto.display());
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let files = protox::compile([FILE], [&proto])
        .with_context(|| format!("cannot compile {FILE} below {}", proto.display()))?;
    let descriptors = files.encode_to_vec();
    fs::write(out.join("kwitness.v1alpha1.bin"), &descriptors)?;
    tonic_prost_build::configure()
        .build_transport(false)
        .build_server(false)
        .btree_map(".")
        // Rare, and several times as large as the others.
        .boxed(".kwitness.v1alpha1.Event.kind.limit_changed")
        .boxed(".kwitness.v1alpha1.Event.kind.verdict")
        .boxed(".kwitness.v1alpha1.Event.kind.oom_kill")
        .extern_path(TIMESTAMP.0, TIMESTAMP.1)
        .compile_fds(files)?;
    pbjson_build::Builder::new()
        .register_descriptors(&descriptors)?
        .extern_path(TIMESTAMP.0, TIMESTAMP.1)
        .btree_map(["."])
        .ignore_unknown_fields()
        .build(&[".kwitness.v1alpha1"])?;
    Ok(())
}
