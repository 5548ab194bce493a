//! Generates the server's side of the API, and puts the compiled probes where the daemon embeds them from.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::Context as _;

/// Methods whose responses go out as bytes that were encoded before, and the codec that does it.
const PRE_ENCODED: &[(&str, &str, &str)] = &[
    ("/kwitness.v1alpha1.Kwitness/Watch", "crate::hub::Batch", "crate::hub::BatchCodec"),
    ("/kwitness.v1alpha1.Kwitness/List", "crate::api::Listed", "crate::api::ListCodec"),
];

fn main() -> anyhow::Result<()> {
    probes_object()?;
    let proto = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo::rerun-if-changed={}", proto.display());
    let file = "kwitness/v1alpha1/kwitness.proto";
    let files = protox::compile([file], [&proto])
        .with_context(|| format!("cannot compile {file} below {}", proto.display()))?;
    server(&files);
    Ok(())
}

/// The server's side: as the protobuf files say, but for the answers in [`PRE_ENCODED`].
fn server(files: &prost_types::FileDescriptorSet) {
    for file in &files.file {
        for service in &file.service {
            let mut built =
                tonic_build::manual::Service::builder().name(service.name()).package(file.package());
            for method in &service.method {
                let route = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                let message = |path: &str| {
                    let name = path.rsplit('.').next().unwrap_or(path);
                    format!("kwitness_api::proto::{name}")
                };
                let (output, codec) = PRE_ENCODED
                    .iter()
                    .find(|(of, ..)| *of == route)
                    .map(|(_, output, codec)| ((*output).to_owned(), *codec))
                    .unwrap_or_else(|| (message(method.output_type()), "crate::wire::RequestCodec"));
                let mut one = tonic_build::manual::Method::builder()
                    .name(snake(method.name()))
                    .route_name(method.name())
                    .input_type(message(method.input_type()))
                    .output_type(output)
                    .codec_path(codec);
                if method.server_streaming() {
                    one = one.server_streaming();
                }
                built = built.method(one.build());
            }
            tonic_build::manual::Builder::new().build_client(false).compile(&[built.build()]);
        }
    }
}

/// The compiled probes: those of the repository, or what `KWITNESS_PROBES_OBJECT` names.
fn probes_object() -> anyhow::Result<()> {
    const OVERRIDE: &str = "KWITNESS_PROBES_OBJECT";
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    let manifest_dir = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let object = env::var_os(OVERRIDE)
        .map_or_else(|| manifest_dir.join("../../ebpf/prebuilt/kwitness-probes.o"), PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    let target = PathBuf::from(env::var("OUT_DIR")?).join("kwitness-probes.o");
    fs::copy(&object, &target).with_context(|| {
        format!("copying the compiled probes from {} (`cargo xtask ebpf` builds them)", object.display())
    })?;
    Ok(())
}

/// `ReportCriRequests` as a Rust function is called.
fn snake(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}
