//! Compiles the CRI subset with which the tests drive a container runtime, and stand in for one, without a protoc.

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["cri.proto"], ["proto"]).context("compile proto/cri.proto")?;
    tonic_prost_build::configure()
        // A stand-in implements the calls that it is for.
        .generate_default_stubs(true)
        .compile_fds(descriptors)
        .context("generate the CRI client and server")?;
    Ok(())
}
