//! Sets `cfg(node)` where the commands of the node itself are built: on Linux, with the feature `node`. Has the linker pack relocations
//! if the environment says so.

use std::env;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(node)");
    let is = |variable, wanted| env::var(variable).is_ok_and(|value| value == wanted);
    let is_linux = is("CARGO_CFG_TARGET_OS", "linux");
    if is_linux && env::var_os("CARGO_FEATURE_NODE").is_some() {
        println!("cargo::rustc-cfg=node");
    }
    // Each program start reads all relocations: packed, they have 17 KB instead of 1.7 MB. Whoever sets this knows that the linker packs
    // them (binutils 2.38) and that the static C library reads them (glibc 2.36): otherwise the program crashes at its start.
    println!("cargo::rerun-if-env-changed=KWITNESS_PACK_RELOCATIONS");
    if env::var_os("KWITNESS_PACK_RELOCATIONS").is_some() {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
