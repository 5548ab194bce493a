//! One container with many cgroups of its own, beside each other (systemd in a container) and within each other.

use std::fs;
use std::path::PathBuf;

use kwitness_tests::prelude::*;

use crate::curve::{Bound, Budget, Curve};
use crate::growth::Starts;

const WIDTHS: [usize; 3] = [100, 1000, 10_000];
const DEPTHS: [usize; 3] = [10, 100, 1000];
/// A path of more levels is longer than `PATH_MAX`.
const DEEPEST: usize = 1500;
const LIMIT: Duration = Duration::from_secs(90);
const EACH: Duration = Duration::from_secs(15);

const CGROUPS: &str = "cgroups in a container";

pub(crate) async fn measure(environment: &Environment, sizes: &[usize]) -> Result<Vec<Curve>> {
    let of = |all: &'static [usize]| if sizes.is_empty() { all } else { sizes }.to_vec();
    let mut curves = shape(environment, "wide", &of(&WIDTHS)).await?;
    curves.extend(shape(environment, "deep", &of(&DEPTHS)).await?);
    Ok(curves)
}

async fn shape(environment: &Environment, name: &str, sizes: &[usize]) -> Result<Vec<Curve>> {
    let curve = |what, unit| Curve::new(&format!("tree: {name}, {what}"), CGROUPS, unit, Bound::Linear);
    let (mut ready, mut scan) = (curve("start to ready", "ms"), curve("first scan", "ms"));
    let mut memory = curve("resident memory", "MB");
    let budget = Budget::of(LIMIT);
    for &size in sizes {
        let is_deep = name == "deep";
        let starts = async {
            ensure!(!is_deep || size <= DEEPEST, "deeper than a path can name");
            budget.check(EACH)?;
            with_cgroups(environment, is_deep, size).await
        };
        match starts.await {
            Ok(starts) => {
                ready.add(size as f64, &starts.ready, "");
                scan.add(size as f64, &starts.scan, "");
                memory.add(size as f64, &starts.memory, "");
            }
            Err(error) => {
                for curve in [&mut ready, &mut scan, &mut memory] {
                    curve.leave_out(&size.to_string(), &error);
                }
            }
        }
    }
    Ok(vec![ready, scan, memory])
}

/// Starts the daemon before a container with so many cgroups below its own.
async fn with_cgroups(environment: &Environment, deep: bool, count: usize) -> Result<Starts> {
    let kubepods = Kubepods::make(environment)?;
    let container = kubepods.container()?;
    let top = container.cgroup().directory();
    if deep {
        let path: PathBuf = top.join(vec!["d"; count].join("/"));
        fs::create_dir_all(&path).with_context(|| format!("make {count} levels of cgroups"))?;
    } else {
        for number in 0..count {
            let path = top.join(number.to_string());
            fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        }
    }
    Starts::measure(environment, 1).await
}
