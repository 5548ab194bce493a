//! The compiled programs, part of this executable: `ebpf/prebuilt/`, or what `KWITNESS_PROBES_OBJECT` named when it was
//! built.

/// The ELF object.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/kwitness-probes.o"));
