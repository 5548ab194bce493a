//! The images that critest asks for, made of static programs, as an OCI image layout: no registry is used.
//!
//! Each image stands in for the one of the same name: it has the commands, users, ports and files that the suite looks for, and an id of
//! its own where the suite counts images. What serves them is `kwitness_tests::registry`.

use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};
use tar::{Builder, EntryType};

use crate::architecture::Architecture;
use crate::images;
use crate::oci::{Configuration, Layer, Layout, add_directory, add_file, header};
use crate::setup::programs;
use crate::workspace::Cache;

const DIRECTORIES: &[&str] =
    &["bin", "dev", "etc", "home", "proc", "root", "run", "sys", "var", "var/run", "var/www"];
const USERS: &str = "root:x:0:0::/root:/bin/sh\ndaemon:x:1:1::/:/bin/false\nwww-data:x:33:33::/var/www:/bin/false\n\
                     nobody:x:65534:65534::/:/bin/false\n";
const GROUPS: &str = "root:x:0:\ndaemon:x:1:\nwww-data:x:33:\nnogroup:x:65534:\n";
/// What the suite calls and Debian's busybox does not have.
const PGREP: &str = "#!/bin/sh\nexec pidof \"$1\"\n";
const IPCS: &str = "#!/bin/sh\nexec cat /proc/sysvipc/shm\n";
/// A script of that name, for the suite looks for a process called `nginx`.
const NGINX: &str =
    "#!/bin/sh\necho $$ >/var/run/nginx.pid\nbusybox httpd -p 80 -h /var/www\nwhile :; do sleep 3600; done\n";
/// Where most of the suite's own images are.
const STAGING: &str = "gcr.io/k8s-staging-cri-tools";

pub fn write(cache: &Cache, directory: &Path) -> Result<()> {
    let mut layout = Layout::new(directory)?;
    let (busybox, applets) = images::busybox()?;
    let root = |users: &str, groups: &str| base(&busybox, &applets, users, groups);
    let base = layout.layer(&root(USERS, GROUPS)?)?;
    let mark = |layout: &mut Layout, name: &str| layout.layer(&single(name, b"", 0o644)?);

    let pause =
        layout.layer(&single("pause", &programs::read(cache, Architecture::HOST, "pause")?, 0o755)?)?;
    let entry = json!({ "Entrypoint": ["/pause"] });
    add_image(&mut layout, &["registry.k8s.io/pause:3.10"], &[&pause], &entry)?;
    // In two registries, and of another id than the sandboxes' image, which must not be removed.
    let older = mark(&mut layout, "older")?;
    add_image(
        &mut layout,
        &["registry.k8s.io/pause:3.9", "k8s.gcr.io/pause:3.9"],
        &[&pause, &older],
        &entry,
    )?;

    let e2e = |name: &str| format!("registry.k8s.io/e2e-test-images/{name}");
    let shell = json!({ "Cmd": ["sh"] });
    add_image(&mut layout, &[&e2e("busybox:1.29-2")], &[&base], &shell)?;
    let nginx = layout.layer(&single("bin/nginx", NGINX.as_bytes(), 0o755)?)?;
    let command = json!({ "Cmd": ["/bin/nginx", "master process"] });
    add_image(&mut layout, &[&e2e("nginx:1.14-2")], &[&base, &nginx], &command)?;
    // The suite looks for its name in its log.
    let httpd = mark(&mut layout, "httpd")?;
    let command = json!({ "Cmd": ["/bin/sh", "-c", "echo httpd; exec busybox httpd -f -p 80 -h /var/www"] });
    add_image(&mut layout, &[&e2e("httpd:2.4.39-4")], &[&base, &httpd], &command)?;
    let nnp = layout.layer(&single("nnp", &programs::read(cache, Architecture::HOST, "nnp")?, 0o4755)?)?;
    add_image(&mut layout, &[&e2e("nonewprivs:1.3")], &[&base, &nnp], &json!({ "Cmd": ["/nnp"] }))?;

    let host_network = mark(&mut layout, "host-network")?;
    add_image(
        &mut layout,
        &[&format!("{STAGING}/hostnet-nginx-amd64:latest")],
        &[&base, &host_network],
        &json!({ "Cmd": ["/bin/busybox", "httpd", "-f", "-p", "12003", "-h", "/var/www"] }),
    )?;
    for (name, user) in [
        ("uid", "1002"),
        ("username", "www-data"),
        ("uid-group", "1003:50000"),
        ("username-group", "www-data:100"),
    ] {
        let own = mark(&mut layout, name)?;
        let image = format!("{STAGING}/test-image-user-{name}:latest");
        add_image(&mut layout, &[&image], &[&base, &own], &json!({ "User": user }))?;
    }
    let users = format!("{USERS}default-user:x:1000:1000::/home:/bin/sh\n");
    let groups = format!("{GROUPS}default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n");
    let with_group = layout.layer(&root(&users, &groups)?)?;
    let image = format!("{STAGING}/test-image-predefined-group:latest");
    add_image(&mut layout, &[&image], &[&with_group], &json!({ "User": "1000" }))?;
    for name in ["latest:latest", "tag:test", "tag:all", "digest:latest", "1:latest", "2:latest", "3:latest"]
    {
        let own = mark(&mut layout, &name.replace(':', "-"))?;
        add_image(&mut layout, &[&format!("{STAGING}/test-image-{name}")], &[&base, &own], &shell)?;
    }
    // One image of three names.
    let own = mark(&mut layout, "tags")?;
    let names = [1, 2, 3].map(|tag| format!("{STAGING}/test-image-tags:{tag}"));
    add_image(&mut layout, &names.each_ref().map(String::as_str), &[&base, &own], &shell)?;
    layout.finish()
}

/// A layer with busybox, and its applets as hard links: masking the path of one must not mask busybox itself.
fn base(busybox: &[u8], applets: &[String], users: &str, groups: &str) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    DIRECTORIES.iter().try_for_each(|name| add_directory(&mut tar, name, 0o755))?;
    add_directory(&mut tar, "tmp", 0o1777)?;
    add_file(&mut tar, "bin/busybox", busybox, 0o755)?;
    for applet in applets {
        let mut header = header(EntryType::Link, 0o755, 0);
        tar.append_link(&mut header, format!("bin/{applet}"), "bin/busybox")?;
    }
    add_file(&mut tar, "bin/pgrep", PGREP.as_bytes(), 0o755)?;
    add_file(&mut tar, "bin/ipcs", IPCS.as_bytes(), 0o755)?;
    add_file(&mut tar, "etc/passwd", users.as_bytes(), 0o644)?;
    add_file(&mut tar, "etc/group", groups.as_bytes(), 0o644)?;
    add_file(&mut tar, "var/www/index.html", b"ok\n", 0o644)?;
    Ok(tar.into_inner()?)
}

fn single(name: &str, bytes: &[u8], mode: u32) -> Result<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    add_file(&mut tar, name, bytes, mode)?;
    Ok(tar.into_inner()?)
}

/// Adds an image under each of the names, with what its configuration says beside the environment.
fn add_image(layout: &mut Layout, names: &[&str], layers: &[&Layer], configuration: &Value) -> Result<()> {
    let mut config = json!({ "Env": ["PATH=/bin:/usr/bin:/sbin:/usr/sbin"] });
    if let (Some(all), Some(more)) = (config.as_object_mut(), configuration.as_object()) {
        all.extend(more.clone());
    }
    let image = layout.image(layers, &Configuration { architecture: "amd64", created: None, config })?;
    names.iter().for_each(|name| layout.name(&image, name));
    Ok(())
}
