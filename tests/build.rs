//! Compiles the CRI subset with which the tests drive a container runtime, without a protoc.

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["cri.proto"], ["proto"]).context("compile proto/cri.proto")?;
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(descriptors)
        .context("generate the CRI client")?;
    Ok(())
}
