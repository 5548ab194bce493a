//! Sets `cfg(node)` where the commands of the node itself are built: on Linux, with the feature `node`. Has the linker pack relocations
//! where the C library is linked statically.

use std::env;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(node)");
    let is = |variable, wanted| env::var(variable).is_ok_and(|value| value == wanted);
    let is_linux = is("CARGO_CFG_TARGET_OS", "linux");
    if is_linux && env::var_os("CARGO_FEATURE_NODE").is_some() {
        println!("cargo::rustc-cfg=node");
    }
    // Each program start reads all relocations: packed, they have 17 KB instead of 1.7 MB. For other machines than this, Debian 12's linker
    // cannot pack them.
    let features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    if is_linux
        && is("CARGO_CFG_TARGET_ARCH", "x86_64")
        && is("CARGO_CFG_TARGET_ENV", "gnu")
        && features.split(',').any(|feature| feature == "crt-static")
    {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
