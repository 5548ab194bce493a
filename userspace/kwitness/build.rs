//! Generates the API's types, its JSON, its server and client, and the client of the container runtime from the
//! files below `proto/`; no `protoc` is needed. Puts the compiled probes where the daemon embeds them from.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::Context as _;
use prost::Message as _;

/// Methods whose answers go out as bytes that were encoded before, and the codec that does it.
const PRE_ENCODED: &[(&str, &str, &str)] =
    &[("/kwitness.v1.Kwitness/Watch", "crate::hub::Batch", "crate::hub::BatchCodec")];

fn main() -> anyhow::Result<()> {
    probes_object()?;
    let proto = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo::rerun-if-changed={}", proto.display());
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let files = compile(&proto, "kwitness/v1/kwitness.proto")?;
    let descriptors = files.encode_to_vec();
    fs::write(out.join("kwitness.v1.bin"), &descriptors)?;
    builder()
        .build_server(false)
        .extern_path(".google.protobuf.Timestamp", "crate::proto::Timestamp")
        .compile_fds(files.clone())?;
    server(&files);
    pbjson_build::Builder::new()
        .register_descriptors(&descriptors)?
        .extern_path(".google.protobuf.Timestamp", "crate::proto::Timestamp")
        .btree_map(["."])
        .ignore_unknown_fields()
        .build(&[".kwitness.v1"])?;

    builder().compile_fds(compile(&proto.join("cri"), "runtime/v1/api.proto")?)?;
    builder().bytes(".").compile_fds(compile(&proto.join("cri"), "events.proto")?)?;
    Ok(())
}

fn builder() -> tonic_prost_build::Builder {
    tonic_prost_build::configure()
        .build_transport(false)
        .btree_map(".")
        // Rare, and several times as large as the others.
        .boxed(".kwitness.v1.Event.kind.limit_changed")
        .boxed(".kwitness.v1.Event.kind.verdict")
        .boxed(".kwitness.v1.Event.kind.oom_kill")
}

fn compile(root: &Path, file: &str) -> anyhow::Result<prost_types::FileDescriptorSet> {
    protox::compile([file], [root]).with_context(|| format!("cannot compile {file} below {}", root.display()))
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
                    format!("crate::proto::v1::{name}")
                };
                let (output, codec) = PRE_ENCODED
                    .iter()
                    .find(|(of, ..)| *of == route)
                    .map(|(_, output, codec)| ((*output).to_owned(), *codec))
                    .unwrap_or_else(|| (message(method.output_type()), "tonic_prost::ProstCodec"));
                let mut one = tonic_build::manual::Method::builder()
                    .name(method.name().to_lowercase())
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
