//! Generates the CRI's messages and client from the files below `proto/cri`; no `protoc` is needed.

use std::env;
use std::path::Path;

use anyhow::Context as _;

fn main() -> anyhow::Result<()> {
    let proto = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../../proto/cri");
    println!("cargo::rerun-if-changed={}", proto.display());
    let compile = |file: &str| {
        protox::compile([file], [&proto])
            .with_context(|| format!("cannot compile {file} below {}", proto.display()))
    };
    let builder = || tonic_prost_build::configure().build_transport(false).btree_map(".");
    builder().compile_fds(compile("runtime/v1/api.proto")?)?;
    builder().bytes(".").compile_fds(compile("events.proto")?)?;
    Ok(())
}
