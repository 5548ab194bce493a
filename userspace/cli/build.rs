//! Sets `cfg(node)` where the commands of the node itself are built: on Linux, with the feature `node`.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(node)");
    let is_linux = std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux");
    if is_linux && std::env::var_os("CARGO_FEATURE_NODE").is_some() {
        println!("cargo::rustc-cfg=node");
    }
}
