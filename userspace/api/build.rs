//! Generates the API's messages, their canonical JSON and the client from the files below `proto/`; no `protoc` is needed.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context as _, ensure};
use prost::Message as _;
use prost_types::FileDescriptorSet;

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
    fs::write(out.join("event_kind.rs"), event_kinds(&files)?)?;
    tonic_prost_build::configure()
        .build_transport(false)
        // For the client's tests. The daemon's server is generated with a codec of its own.
        .server_mod_attribute(".", "#[cfg(test)]")
        .btree_map(".")
        // Rare, and several times as large as the others.
        .boxed(".kwitness.v1alpha1.Event.kind.limit_changed")
        .boxed(".kwitness.v1alpha1.Event.kind.verdict")
        .boxed(".kwitness.v1alpha1.Event.kind.oom_kill")
        .boxed(".kwitness.v1alpha1.Event.kind.pressure")
        .boxed(".kwitness.v1alpha1.Event.kind.guard_held")
        .boxed(".kwitness.v1alpha1.Event.kind.guard_continued")
        .boxed(".kwitness.v1alpha1.Event.kind.guard_refused")
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

/// The enum `EventKind` in Rust, without a value for "unspecified", from the members of `Event.kind`. The enum of the same
/// name in the protobuf file must list the same members with the same numbers.
fn event_kinds(files: &FileDescriptorSet) -> anyhow::Result<String> {
    let file = files.file.iter().find(|file| file.name() == FILE).context("the file has no descriptor")?;
    let event = file.message_type.iter().find(|message| message.name() == "Event").context("no `Event`")?;
    let members: Vec<_> = event.field.iter().filter(|field| field.oneof_index.is_some()).collect();
    let listed = file.enum_type.iter().find(|of| of.name() == "EventKind").context("no `EventKind`")?;
    let listed: Vec<_> = listed.value.iter().skip(1).map(|value| (value.name(), value.number())).collect();
    let names: Vec<_> =
        members.iter().map(|field| format!("EVENT_KIND_{}", field.name().to_uppercase())).collect();
    let wanted: Vec<_> =
        names.iter().map(String::as_str).zip(members.iter().map(|field| field.number())).collect();
    ensure!(listed == wanted, "enum EventKind must list the members of Event.kind: {listed:?}, {wanted:?}");

    let variants: Vec<_> = members.iter().map(|field| (camel(field.name()), *field)).collect();
    let each = |line: &dyn Fn(&str, &prost_types::FieldDescriptorProto) -> String| {
        variants.iter().map(|(variant, field)| line(variant, field)).collect::<Vec<_>>().join("\n")
    };
    Ok(format!(
        r#"/// A kind of event without its contents. Its number is that in `Filter.kinds`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the protobuf file documents each")]
pub enum EventKind {{
{}
}}

impl EventKind {{
    /// Every kind, in the order of the protobuf file.
    pub const ALL: [Self; {}] = [
{}
    ];

    /// The JSON name of the member of `Event.kind`, which is also the value of `Event.type`.
    pub const fn name(self) -> &'static str {{
        match self {{
{}
        }}
    }}
}}

impl From<&proto::event::Kind> for EventKind {{
    fn from(kind: &proto::event::Kind) -> Self {{
        match kind {{
{}
        }}
    }}
}}
"#,
        each(&|variant, field| format!("    {variant} = {},", field.number())),
        variants.len(),
        each(&|variant, _| format!("        Self::{variant},")),
        each(&|variant, field| format!("            Self::{variant} => {:?},", field.json_name())),
        each(&|variant, _| format!("            proto::event::Kind::{variant}(_) => Self::{variant},")),
    ))
}

/// `oom_kill` as the name of an enum's variant.
fn camel(name: &str) -> String {
    let words = name.split('_').map(|word| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect::<String>()
    });
    words.collect()
}
